"""The leaderboard is a pure function of records."""

from __future__ import annotations

import pandas as pd
import pytest

from results.__main__ import main
from results.records.selection import select
from results.records.store import Store
from results.tables.leaderboard import leaderboard, render
from tests.results.records.test_store import record


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


def test_layers_with_bits_of_their_own_are_told_by_their_average():
    """bits=3 'bits_per_layer={*: 4}' has nothing of three bits but its column."""
    own = {"bits": 3, "seed": 0, "bits_per_layer": {"*": 4}}
    rows = [
        record("a", 80.0, bits=3, settings={"bits": 3, "seed": 0}, average_bits=3.0),
        record("b", 90.0, bits=3, settings=own, average_bits=4.0, bits_per_layer={"fc": 4}),
    ]
    both = leaderboard(rows)
    assert dict(zip(both["average_bits"], both["mean"], strict=True)) == {"3.0": 80.0, "4.0": 90.0}
    assert leaderboard(rows[1:])["average_bits"].tolist() == ["4.0"]
    assert "average_bits" not in leaderboard(rows[:1])


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


def test_what_a_sweep_has_swept_tells_its_runs_apart():
    """It is one user's question: runs of a group that no column names stand beside each other."""
    settings = [{"bits": 4, "seed": 0, "ranges": {"_target_": t}} for t in ("LpSearch", "MinMax")]
    rows = [record(f"r{i}", 90.0 + i, settings=own) for i, own in enumerate(settings)]
    table = leaderboard(rows, apart=True)
    assert table["mean"].tolist() == [90.0, 91.0]
    assert table["ranges._target_"].tolist() == ["LpSearch", "MinMax"]


def test_all_that_tells_the_runs_apart_is_named_at_once():
    rows = runs()
    for name, settings in {
        "lr": {"seed": 0, "recon": {"lr": 5e-3}},
        "both": {"seed": 0, "recon": {"lr": 5e-3}, "num_samples": 9},
        "rank": {"seed": 0, "recon": {"lr": 1e-3}, "quant": {"rank": 2}},
    }.items():
        rows.append(record(name, 10.0, settings={"bits": 4} | settings, started="4"))
    with pytest.raises(ValueError, match=r"tell them apart with --by ") as caught:
        leaderboard(rows)
    by = str(caught.value).split(" apart with --by ")[1].split(" --by ")
    assert sorted(by) == ["num_samples", "quant.rank", "recon.lr"]
    assert len(leaderboard(rows, by)) == 6


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


def test_an_older_version_of_a_task_stands_apart():
    rows = [record("a", 90.0), record("b", task_version=2, seed=1, settings={"bits": 4, "seed": 1})]
    frame = leaderboard(rows)
    assert dict(zip(frame["task_version"], frame["mean"], strict=True)) == {"1": 90.0, "2": 97.0}
    assert leaderboard(select(rows, {"task_version": "2"}))["mean"].tolist() == [97.0]


def test_another_metric_of_a_task_stands_apart():
    other = record("b", metric="f1", metrics={"f1": 97.0}, seed=1, settings={"bits": 4, "seed": 1})
    frame = leaderboard([record("a"), other])
    assert frame["n"].tolist() == [1, 1]
    assert "digits: top1 or f1" in render(frame, "markdown")


def test_a_method_that_no_longer_exists_and_a_missing_full_precision_are_shown():
    old = record("a", quant="ternary", fp_value=None, fp_metrics={})
    nan = record("b", quant="rtn", fp_value=float("nan"))
    text = render(leaderboard([old, nan]), "markdown")
    for line, method in zip(text.splitlines()[2:4], ("ternary", "rtn"), strict=True):
        assert [w.strip() for w in line.split("|")[2:-1]] == [method, "-", "97.00"]


def test_a_median_stands_beside_the_mean():
    rows = [
        record(f"{seed}", value, seed=seed, settings={"bits": 4, "seed": seed})
        for seed, value in enumerate((90.0, 91.0, 20.0, 95.0, 92.0))
    ]
    (row,) = leaderboard(rows).itertuples()
    assert (row.median, row.mean) == (91.0, 77.6)


def test_html_holds_a_table():
    assert "<table" in render(leaderboard([record(model="mobilenet_v2")]), "html")


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
     (["--where", "num_sample=1"], "no record has a setting num_sample"),
     (["--where", "task_vers=1"], "no record has a setting task_vers; did you mean task_version"),
     (["--by", "seeds"], "no record has a setting seeds; did you mean seed?"),
     (["--model", "resnet19"], "none of the 1 records has model=resnet19; did you mean resnet18?"),
     (["--task", "digits", "--where", "seed=1"], "none of the 1 records has seed=1")],
)  # fmt: skip
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys, args, message):
    if args:
        Store(tmp_path).write(record())
    assert main(["--results-dir", str(tmp_path), *args]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def activations(act_bits, steps, value, started):
    settings = {"bits": 4, "seed": 0, "act_bits": act_bits, "recon": {"act_steps": steps}}
    return record(f"a{started}", value, settings=settings, started=started)


def test_well_known_settings_become_columns_where_they_tell_runs_apart():
    rows = [activations(4, "after", 91.0, "0"), activations(4, "together", 92.0, "1")]
    frame = leaderboard(rows)
    assert list(frame.columns[:5]) == ["task", "model", "quant", "recon.act_steps", "bits"]
    assert dict(zip(frame["recon.act_steps"], frame["mean"], strict=True)) == {
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
