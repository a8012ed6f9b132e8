"""The notebook's front door: frames and figures of what the command line prints and draws."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pandas as pd
import pytest

import results
from benchmarks.board import records as synthetic
from results import notebook
from results.__main__ import main
from results.records.store import Store
from tests.results.plots.test_plots import run, sweep
from tests.results.records.test_store import record

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    """Return a folder with the records of a sweep."""
    store = Store(tmp_path / "results")
    for made in sweep():
        store.write(made)
    return store.root


def printed(capsys, *argv):
    """Return what a command prints."""
    assert main(argv) == 0
    return capsys.readouterr().out


def test_a_row_is_a_run_with_its_settings_metrics_and_cost(tmp_path):
    store = Store(tmp_path)
    settings = {
        "bits": 3,
        "seed": 1,
        "recon": {"lr": 1e-3, "deep": {"er": "x"}},
        "activation": None,
    }
    store.write(
        record(
            "a", 90.0, quant="rtn", bits=3, seed=1, settings=settings, seconds=12.5,
            peak_memory_gib=2.0, fp_value=98.0, metrics={"top1": 90.0, "nll": 0.5},
        )
    )  # fmt: skip
    store.write(record("b", status="failed", started="2"))
    runs = results.load(tmp_path)
    assert list(runs.index) == ["a", "b"], "oldest first"
    row = runs.loc["a"]
    assert (row["quant"], row["bits"], row["seed"], row["status"]) == ("rtn", 3, 1, "ok")
    assert (row["value"], row["fp_value"], row["delta"]) == (90.0, 98.0, -8.0)
    assert (row["metrics.top1"], row["metrics.nll"]) == (90.0, 0.5)
    assert (row["seconds"], row["peak_memory_gib"]) == (12.5, 2.0)
    assert (row["recon.lr"], row["recon.deep.er"]) == (1e-3, "x")
    failed = runs.loc["b"]
    assert failed["error"] == "it broke"
    assert pd.isna(failed["value"])
    assert pd.isna(failed["delta"])
    assert runs.columns.is_unique


def test_a_file_with_a_record_a_line_is_read_as_a_folder_is(folder, tmp_path, capsys):
    lines = tmp_path / "kept.jsonl"
    kept = [json.dumps(r.to_json()) for r in Store(folder).load()]
    lines.write_text("\n".join(kept) + "\n\n")
    pd.testing.assert_frame_equal(results.load(lines), results.load(folder))
    assert printed(capsys, "--results-dir", str(lines)) == printed(
        capsys, "--results-dir", str(folder)
    )
    assert len(results.units(lines)) == len(results.units(folder))


def test_what_a_table_refuses_is_said_in_words_of_python(tmp_path):
    """Two options of the command line are one argument here."""
    store = Store(tmp_path)
    for name, lr, samples in (("a", 1, 1), ("b", 2, 1), ("c", 2, 2)):
        own = {"recon": {"lr": lr}, "num_samples": samples}
        store.write(record(name, 90.0, settings=own, started="1"))
    with pytest.raises(ValueError, match=r"apart with by=\[") as caught:
        results.leaderboard(tmp_path)
    by = json.loads(str(caught.value).rpartition("by=")[2])
    assert len(results.leaderboard(tmp_path, by=by)) == 3


def test_tables_are_the_command_lines(folder, capsys):
    board = results.leaderboard(folder, by=["num_samples"])
    text = printed(capsys, "--results-dir", str(folder), "--by", "num_samples", "--format", "csv")
    assert board.to_csv(index=False).rstrip("\n") == text.rstrip("\n")
    found = results.compare("flexround", "rtn", folder, by="num_samples")
    text = printed(
        capsys, "compare", "flexround", "rtn", "--results-dir", str(folder), "--format", "csv",
        "--by", "num_samples",
    )  # fmt: skip
    assert found.to_csv(index=False).rstrip("\n") == text.rstrip("\n")
    assert found.attrs["remarks"]
    found = results.ablation("quant", folder)
    text = printed(capsys, "ablation", "quant", "--results-dir", str(folder), "--format", "csv")
    assert found.to_csv(index=False).rstrip("\n") == text.rstrip("\n")


def test_a_part_of_a_frame_stands_for_its_runs_alone(folder):
    runs = results.load(folder)
    part = runs[runs["bits"] == 4].sort_values("value")
    assert set(results.leaderboard(part, by="num_samples")["bits"]) == {4}
    assert set(results.units(part).index.get_level_values("run_id")) == set(part.index)
    one = results.units(runs.iloc[0])
    assert set(one.index.get_level_values("run_id")) == {runs.index[0]}


def test_units_hold_errors_and_cost(tmp_path):
    store = Store(tmp_path)
    store.write(run("flexround", 4, 90.0))
    store.write(record("none"))
    units = results.units(tmp_path)
    assert units.index.get_level_values("unit").tolist() == ["layers.0", "layers.1"]
    assert units["error_before"].tolist() == [8.0, 16.0]
    assert units["error_after"].tolist() == [1.0, 2.0]
    assert units["cost.state_bytes"].tolist() == [2**20, 3 * 2**20]
    assert units["curve"].iloc[0][0] == [0, 8.0]


def test_figures_are_those_of_the_command_line_and_show_in_a_notebook(folder, tmp_path):
    pytest.importorskip("matplotlib")
    drawn = results.plot("bits", folder, by=["num_samples"])
    assert list(drawn) == ["bits"]
    html = drawn._repr_html_()
    assert html.startswith("<svg")
    assert html == results.plot("bits", folder, by=["num_samples"])._repr_html_()
    mine = drawn.save(tmp_path / "mine")
    out = str(tmp_path / "theirs")
    argv = ["plot", "bits", "--results-dir", str(folder), "--by", "num_samples", "--out", out]
    assert main(argv) == 0
    for path in mine:
        assert path.read_bytes() == Path(out, path.name).read_bytes()
    assert list(results.plot("curves", folder)), "a kind that needs the records' units"


def test_what_can_not_be_read_is_left_out_with_one_warning_that_names_it(tmp_path):
    store = Store(tmp_path)
    store.write(record("good"))
    (tmp_path / "torn.json").write_text('{"run_id": "torn"')
    later = record("later").to_json() | {"schema": 99}
    (tmp_path / "later.json").write_text(json.dumps(later))
    old = record("old").to_json() | {"schema": 1}
    (tmp_path / "old.json").write_text(json.dumps(old))
    with pytest.warns(UserWarning, match="left out of") as told:
        runs = results.load(tmp_path)
    assert list(runs.index) == ["good"]
    (warning,) = told
    text = str(warning.message)
    assert "\n" not in text
    assert "torn.json" in text
    assert "later.json" in text
    assert "schema 99" in text
    assert "1 records of an older version" in text or "rekey" in text
    assert warning.filename == __file__, "it points to the caller's line"


def test_many_damaged_records_are_told_in_one_line(tmp_path):
    Store(tmp_path).write(record("good"))
    for number in range(40):
        (tmp_path / f"bad{number:02d}.json").write_text("{")
    with pytest.warns(UserWarning, match="and 35 more") as told:
        results.load(tmp_path)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda f: results.load(f / "nowhere"), "no such folder"),
        (lambda f: results.load(f.parent), "no records in"),
        (lambda f: results.load(__file__), "give the folder of the records, or a .jsonl file"),
        (lambda f: results.leaderboard(f, by="num_sample"), r'by=\["num_sample"\].*num_samples'),
        (lambda f: results.plot("bit", f), r'plot\("bit"\): give one of bits'),
        (lambda f: results.compare("flexround", "gptq", f), "no record of the method gptq"),
        (lambda f: results.compare("rtn", "rtn", f), "give two methods"),
        (lambda f: results.leaderboard(results.load(f).reset_index()), "results.load()"),
        (lambda f: results.leaderboard(pd.DataFrame({"a": [1]})), "results.load()"),
        (lambda f: results.leaderboard(results.load(f).head(0)), "no rows"),
    ],
)
def test_what_can_not_be_done_is_told_in_one_line_of_python(folder, call, told):
    with pytest.raises(ValueError, match=told) as refused:
        call(folder)
    assert "\n" not in str(refused.value)
    assert "--" not in str(refused.value)


def test_two_configurations_in_one_row_are_told_apart_in_words_of_python(tmp_path):
    store = Store(tmp_path)
    for number, samples in enumerate((32, 64)):
        settings = {"bits": 4, "seed": 0, "num_samples": samples}
        store.write(record(f"r{number}", settings=settings))
    with pytest.raises(ValueError, match=r'runs\["num_samples"\] == VALUE.*by=\["num_samples"\]'):
        results.leaderboard(tmp_path)
    assert len(results.leaderboard(tmp_path, by=["num_samples"])) == 2


def test_nothing_of_a_folder_that_is_all_damaged_is_told_as_such(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"none of the 1 records .* can be read: record .*a\.json"):
        results.load(tmp_path)


def test_runs_that_are_gone_are_told(folder):
    runs = results.load(folder)
    (folder / f"{runs.index[0]}.json").unlink()
    with pytest.raises(ValueError, match="no longer in"):
        results.leaderboard(runs, by="num_samples")


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, results; assert 'load' in dir(results); "
        "heavy = ('torch', 'pandas', 'numpy', 'matplotlib', 'hydra'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("module", [results, notebook])
def test_its_examples_are_true(module, monkeypatch):
    monkeypatch.chdir(ROOT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.slow
def test_ten_thousand_records_are_read_nearly_as_fast_as_their_json(tmp_path):
    """By the processor's time, and against what this machine needs for the files alone."""
    for made in synthetic(10_000):
        text = json.dumps(made.to_json(), indent=1, sort_keys=True)
        (tmp_path / f"{made.run_id}.json").write_text(text)
    start = time.process_time()
    plain = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    parsed = time.process_time()
    runs = results.load(tmp_path)
    taken = (time.process_time() - parsed) / (parsed - start)
    assert taken < 3, f"{taken:.1f} times as long as {len(plain)} files take json.loads"
    assert len(runs) == 10_000
    assert runs["value"].isna().sum() == (runs["status"] == "failed").sum()
