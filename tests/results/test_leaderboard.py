"""The leaderboard is a pure function of records."""

from __future__ import annotations

import io

import pandas as pd
import pytest

from results.__main__ import main
from results.leaderboard import leaderboard, render, select
from results.store import Store
from tests.results.test_store import record


def runs():
    """Return two methods, three seeds of one of them, a failed run and an absent cell."""
    rows = []
    for seed, value in enumerate([90.0, 92.0, 94.0]):
        settings = {"bits": 4, "seed": seed, "recon": {"lr": 1e-3}}
        rows.append(record(f"f{seed}", value, seed=seed, settings=settings, started=f"1{seed}"))
    rtn = {"bits": 3, "seed": 0}
    rows.append(record("r", 50.0, quant="rtn", bits=3, settings=rtn, started="2"))
    broken = {"bits": 2, "seed": 0, "recon": {"lr": 1e-3}}
    rows.append(record("x", status="failed", bits=2, settings=broken, started="3"))
    return rows


def cell(frame, quant, bits):
    return frame[(frame.quant == quant) & (frame.bits == bits)].iloc[0]


def test_a_cell_is_mean_and_sample_deviation_over_seeds():
    c = cell(leaderboard(runs()), "flexround", 4)
    assert (c["mean"], c["std"], c["n"]) == (92.0, 2.0, 3)
    assert (c["fp"], c["delta"], c["failed"]) == (98.0, -6.0, 0)


def test_one_seed_has_no_deviation():
    assert pd.isna(cell(leaderboard(runs()), "rtn", 3)["std"])


def test_failed_is_failed_and_absent_is_absent():
    assert cell(leaderboard(runs()), "flexround", 2)["failed"] == 1
    text = render(leaderboard(runs()), "markdown")
    header, _, flexround, rtn = text.splitlines()[:4]
    assert [part.strip() for part in header.split("|")[1:-1]] == [
        "model", "quant", "FP", "W4", "W3", "W2",
    ]  # fmt: skip
    assert [part.strip() for part in flexround.split("|")[1:-1]] == [
        "resnet18", "flexround", "98.00", "92.00 \N{PLUS-MINUS SIGN} 2.00 (-6.00)", "-", "failed",
    ]  # fmt: skip
    assert [part.strip() for part in rtn.split("|")[1:-1]][2:] == [
        "98.00", "-", "50.00 (-48.00)", "-",
    ]  # fmt: skip


def test_two_configurations_in_one_cell_are_never_averaged():
    rows = runs()
    other = {"bits": 4, "seed": 0, "recon": {"lr": 5e-3}}
    rows.append(record("other", 10.0, settings=other))
    with pytest.raises(
        ValueError, match=r"flexround 4 bit: recon.lr \(0.001, 0.005\).*--by recon.lr"
    ):
        leaderboard(rows)
    by = leaderboard(rows, by=["recon.lr"])
    assert by[(by.quant == "flexround") & (by.bits == 4)]["mean"].tolist() == [92.0, 10.0]
    kept = leaderboard(select(rows, {"recon.lr": "0.005"}))
    assert kept["mean"].tolist() == [10.0]


def test_by_a_setting_that_some_rows_lack_and_by_one_that_none_has():
    rows = [record("a", settings={"quant": {"learn_s1": True}}), record("r", quant="rtn")]
    text = render(leaderboard(rows, by=["quant.learn_s1"]), "markdown")
    assert [line.split("|")[3].strip() for line in text.splitlines()[2:4]] == ["True", "-"]
    with pytest.raises(ValueError, match=r"--by quant.learn_s2: no record has a setting"):
        leaderboard(rows, by=["quant.learn_s2"])
    lists = [record("a", settings={"mean": [0.5, 0.5]})]
    assert leaderboard(lists, by=["mean"])["mean"].tolist() == [97.0]


def test_a_failed_attempt_with_other_settings_does_not_hide_what_succeeded():
    failed = record("x", status="failed", settings={"bits": 4, "seed": 0, "num_samples": 5000})
    (row,) = leaderboard([record("a"), failed]).itertuples()
    assert (row.mean, row.failed) == (97.0, 0)
    alike = record("y", status="failed", seed=1, settings={"bits": 4, "seed": 1})
    (row,) = leaderboard([record("a"), alike]).itertuples()
    assert (row.mean, row.failed) == (97.0, 1)


@pytest.mark.parametrize(
    ("where", "runs"),
    [("on=true", "a"), ("on=false", "b"), ("lr=1e-3", "a"), ("lr=0.001", "a"), ("name=x", "a"),
     ("none=null", "ab"), ("quant=flexround", "ab"), ("task_version=1", "ab")],
)  # fmt: skip
def test_where_takes_hydras_spelling(where, runs):
    a = record("a", settings={"on": True, "lr": 1e-3, "name": "x", "none": None})
    b = record("b", settings={"on": False, "lr": 2e-3, "name": "y", "none": None})
    key, _, value = where.partition("=")
    assert [r.run_id for r in select([a, b], {key: value})] == list(runs)


def test_rows_of_one_model_stand_together():
    named = [("a", "m1", "rtn"), ("b", "m2", "rtn"), ("c", "m1", "flexround")]
    frame = leaderboard([record(i, model=m, quant=q) for i, m, q in named])
    assert frame[["model", "quant"]].to_numpy().tolist() == [
        ["m1", "rtn"], ["m1", "flexround"], ["m2", "rtn"],
    ]  # fmt: skip


def test_an_older_version_of_a_task_is_not_mixed_in():
    rows = [record("a"), record("b", task_version=2, seed=1, settings={"bits": 4, "seed": 1})]
    with pytest.raises(ValueError, match="task_version"):
        leaderboard(rows)


def test_csv_reads_back_to_the_same_frame():
    frame = leaderboard(runs())
    again = pd.read_csv(io.StringIO(render(frame, "csv")))
    pd.testing.assert_frame_equal(frame, again, check_dtype=False)


def test_latex_escapes_and_html_holds_a_table():
    rows = [record(model="mobilenet_v2")]
    assert r"mobilenet\_v2" in render(leaderboard(rows), "latex")
    assert r"\toprule" in render(leaderboard(rows), "latex")
    assert "<table" in render(leaderboard(rows), "html")


@pytest.mark.parametrize("form", ["markdown", "csv", "latex", "html"])
def test_the_command_prints_every_format(tmp_path, capsys, form):
    for row in runs():
        Store(tmp_path).write(row)
    assert main(["--results-dir", str(tmp_path), "--format", form]) == 0
    assert "92.0" in capsys.readouterr().out


def test_the_command_filters(tmp_path, capsys):
    store = Store(tmp_path)
    store.write(record("a"))
    store.write(record("b", model="mobilenet_v2"))
    assert main(["--results-dir", str(tmp_path), "--model", "mobilenet_v2"]) == 0
    out = capsys.readouterr().out
    assert "mobilenet_v2" in out
    assert "resnet18" not in out


@pytest.mark.parametrize(
    ("args", "message"),
    [([], "no records"), (["--where", "recon.lr"], "give NAME=VALUE"),
     (["--where", "recon.lrr=1"], "no record has a setting recon.lrr"),
     (["--model", "resnet19"], "none of the 1 records")],
)  # fmt: skip
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys, args, message):
    if args:
        Store(tmp_path).write(record())
    assert main(["--results-dir", str(tmp_path), *args]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def activations(act_bits, steps, value, started):
    settings = {"bits": 4, "seed": 0, "act_bits": act_bits, "recon": {"steps": steps}}
    return record(f"a{started}", value, settings=settings, started=started)


def test_well_known_settings_become_columns_where_they_tell_runs_apart():
    rows = [activations(4, "after", 91.0, "0"), activations(4, "together", 92.0, "1")]
    frame = leaderboard(rows)
    assert list(frame.columns[:5]) == ["task", "model", "quant", "recon.steps", "bits"]
    assert dict(zip(frame["recon.steps"], frame["mean"], strict=True)) == {
        "after": 91.0,
        "together": 92.0,
    }
    assert list(leaderboard(rows[:1]).columns[:4]) == ["task", "model", "quant", "bits"]


def test_bits_of_activations_stand_beside_those_of_weights():
    plain = record("p", 95.0, settings={"bits": 4, "seed": 0}, started="0")
    rows = [plain, activations(8, "after", 93.0, "1"), activations(4, "after", 91.0, "2")]
    text = render(leaderboard(rows), "markdown")
    header, _, row = text.splitlines()[:3]
    assert [part.strip() for part in header.split("|")[3:-1]] == ["FP", "W4A8", "W4A4", "W4"]
    assert [part.strip().partition(" ")[0] for part in row.split("|")[4:-1]] == [
        "93.00", "91.00", "95.00",
    ]  # fmt: skip
