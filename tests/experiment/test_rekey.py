"""Records of the version before keep their numbers, and get the names that their runs have now."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiment.__main__ import main
from experiment.content import Contents
from experiment.rekey import rekey
from experiment.sweeps.status import Sweep
from results.records.store import MARK, Store
from results.tables.leaderboard import leaderboard, render
from tests.conftest import TINY

RTN = (*TINY, "quant=rtn", "num_samples=32")
SWEEP = ("-m", *RTN, "bits=8,7,6")
MODULES = {
    "VisionModel": "flexround.models.vision.VisionModel", "Digits": "tasks.digits.Digits",
    "RTN": "flexround.quantizers.rtn.RTN", "PerTensor": "flexround.grid.PerTensor",
    "LpSearch": "flexround.ranges.LpSearch",
}  # fmt: skip


def aged(path: Path, **changes) -> str:
    """Rewrite a record as the version before would have; return its name of then."""
    data = json.loads(path.read_text())

    def modules(node):
        if not isinstance(node, dict):
            return node
        return {k: MODULES.get(v, v) if k == "_target_" else modules(v) for k, v in node.items()}

    settings = modules(data["settings"]) | {"finetuned": False} | changes
    settings |= dict.fromkeys(("data_dir", "calibration_dir", "imagenet_dir"))
    former = f"{data['bits']:016x}"
    data |= {"run_id": former, "settings": settings, "schema": 1}
    for name in ("places", "conditions", "former_ids"):
        del data[name]
    path.unlink()
    path.with_name(f"{former}.json").write_text(json.dumps(data))
    outcomes = path.parent / "outcomes" / f"{path.stem}.npz"
    outcomes.rename(outcomes.with_stem(former))
    (path.parent / MARK).unlink(missing_ok=True)
    return former


def all_aged(root: Path) -> None:
    for path in list(root.glob("*.json")):
        aged(path)


@pytest.fixture
def old(results_of):
    """Return a folder of three old records, and the table that they make."""
    root = results_of(*SWEEP)
    table = render(leaderboard(Store(root).load()), "markdown")
    all_aged(root)
    return root, table


def test_before_it_one_line_says_so_and_nothing_is_computed(cli, old):
    root, _ = old
    outcome = cli(*RTN, "bits=8")
    assert outcome.status == 1
    (line,) = outcome.err.strip().splitlines()
    assert line.startswith("error: 3 records in")
    assert f"`python -m results rekey --results-dir {root}`" in line
    with pytest.raises(ValueError, match=r"all 3 records in .* rekey"):
        Store(root).load()


def test_the_table_is_the_same_and_every_run_is_found_again(cli, old, capsys):
    root, table = old
    assert main(["rekey", "--results-dir", str(root)]) == 0
    assert capsys.readouterr().out.startswith("3 records of 3 renamed")
    assert render(leaderboard(Store(root).load()), "markdown") == table
    for bits in (8, 7, 6):
        assert "already recorded" in cli(*RTN, f"bits={bits}").err
    for record in Store(root).load():
        assert record.former_ids == [f"{record.bits:016x}"]
        assert len(Store(root).outcomes(record)["top1"]) == 364
    assert len(list((root / "history").glob("*.renamed.json"))) == 3, "nothing is lost"


def test_a_sweep_of_before_knows_its_runs(cli, results_dir, tmp_path):
    assert cli(*SWEEP).status == 0
    all_aged(results_dir)
    for number, bits in enumerate((8, 7, 6)):
        path = tmp_path / "sweep" / str(number) / "outcome.json"
        path.write_text(json.dumps({"run_id": f"{bits:016x}"}))
    rekey(results_dir)
    assert {job.state for job in Sweep(tmp_path / "sweep").states()} == {"done"}


def test_the_results_command_hands_over(old):
    root, _ = old
    command = [sys.executable, "-m", "results", "rekey", "--results-dir", str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("3 records of 3 renamed")


def test_twice_does_nothing(old):
    root, _ = old
    rekey(root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert rekey(root).startswith("0 records of 3 renamed")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_cut_off_it_goes_on(old, monkeypatch):
    root, table = old
    rename = Path.rename

    def full(self, target):
        if Path(target).parent.name == "history":
            raise OSError("killed")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="killed"):
        rekey(root)
    monkeypatch.undo()
    assert rekey(root).startswith("3 records of 3 renamed")
    assert render(leaderboard(Store(root).load()), "markdown") == table


def test_two_records_of_one_run_leave_the_newer_and_keep_the_older(cli, old):
    root, _ = old
    shutil.copytree(root, root.parent / "copy")
    rekey(root)
    for path in (root.parent / "copy").glob("*.json"):  # an older checkout writes here as well
        data = json.loads(path.read_text()) | {"started": "2001-01-01T00:00:00+00:00"}
        (root / path.name).write_text(json.dumps(data))
    assert len(Store(root).load()) == 3, "those of today"
    rekey(root)
    assert len(Store(root).load()) == 3
    assert all(record.started > "2002" for record in Store(root).load())


@pytest.mark.parametrize("touched", [False, True])
def test_a_path_becomes_a_digest_where_nothing_there_has_changed_since(old, tmp_path, touched):
    root, _ = old
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"weights")
    path = next(root.glob("*.json"))
    data = json.loads(path.read_text())
    data["settings"]["checkpoint"] = str(weights)
    began = time.gmtime(time.time() + (-100 if touched else 100))
    data["started"] = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", began)
    path.write_text(json.dumps(data))
    told = rekey(root)
    record = next(r for r in Store(root).load() if r.former_ids == [data["run_id"]])
    assert record.settings["checkpoint"].startswith("/" if touched else "sha256:")
    assert ("1 of them with a path yet" in told) == touched


def test_data_is_named_by_the_files_that_the_class_of_then_read(old, tmp_path):
    root, _ = old
    folder = tmp_path / "squad"
    folder.mkdir()
    for name in ("train-v1.1.json", "dev-v1.1.json", "notes.txt"):
        (folder / name).write_text(name)
    path = next(root.glob("*.json"))
    data = json.loads(path.read_text())
    data["settings"]["task"] = {"_target_": "tasks.squad.Squad", "name": "s", "local": str(folder)}
    data["started"] = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 100))
    path.write_text(json.dumps(data))
    rekey(root)
    record = next(r for r in Store(root).load() if r.former_ids == [data["run_id"]])
    files = {"train": ["train-v1.1.json"], "validation": ["dev-v1.1.json"]}
    digest = Contents(tmp_path / "kept").data(folder, files, "")
    assert record.settings["task"] == {"_target_": "Squad", "name": "s", "local": digest}


@pytest.mark.parametrize("field", ["settings", "started", "value"])
def test_a_damaged_record_stays_and_the_others_are_renamed(old, field):
    root, _ = old
    path = root / "0000000000000007.json"
    data = json.loads(path.read_text()) | {field: None}
    path.write_text(json.dumps(data))
    assert rekey(root).startswith("2 records of 3 renamed")
    assert json.loads(path.read_text()) == data
    assert len(Store(root).load()) == 2


def test_a_folder_at_work_and_one_that_is_none_are_refused(old, tmp_path, capsys):
    root, _ = old
    assert main(["rekey", "--results-dir", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err
    claim = Store(root).claim("0000000000000008")
    claim.take()
    try:
        with pytest.raises(ValueError, match="run 0000000000000008 is at work"):
            rekey(root)
    finally:
        claim.release()
