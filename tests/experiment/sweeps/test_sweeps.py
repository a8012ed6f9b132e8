"""Sweeps that lose nothing: the same command again, faults, and what is said of them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from experiment.__main__ import main as experiment
from experiment.errors import PLACES
from experiment.sweeps.table_callback import SweepTable, _remarks
from flexround.utils.processes import start_of
from results.__main__ import main as results
from results.records.claim import Claim, me
from results.records.store import Store
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[3]
QUICK = (*TINY, "quant=rtn", "num_samples=32")
LEARNED = (*TINY, "quant=flexround", "bits=3", "num_samples=32", "recon.iters=3")


def record_of(store):
    (record,) = Store(store).load()
    return record


def values(record):
    """Return all of a record that another computer or hour would give again."""
    facts = record.to_json()
    for name in ("seconds", "started", "peak_memory_gib", "commit", "versions"):
        del facts[name]
    for block in facts["blocks"]:
        del block["seconds"], block["peak_memory_gib"]
    return facts


def break_evaluation(monkeypatch, message="the GPU is on fire"):
    def burn(*_):
        raise RuntimeError(message)

    monkeypatch.setattr("tasks.vision.digits.Digits.evaluate", burn)


def test_what_has_failed_is_tried_again_when_told_to(cli, results_dir, monkeypatch):
    with monkeypatch.context() as patch:
        break_evaluation(patch)
        assert cli("-m", *QUICK).status == 1
    assert record_of(results_dir).status == "failed"
    outcome = cli(*QUICK)
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1] == (
        "error: failed before: RuntimeError: the GPU is on fire; give retry_failed=true to try it "
        "again"
    )
    assert cli(*QUICK, "retry_failed=true").status == 0
    assert record_of(results_dir).status == "ok"


def test_rerun_keeps_the_old_record_as_history(cli, results_dir):
    cli(*QUICK)
    first = record_of(results_dir)
    assert cli(*QUICK, "rerun=true").status == 0
    again = record_of(results_dir)
    assert values(again) == values(first)
    (old,) = Store(results_dir / "history").root.glob("*.json")
    assert old.name.startswith(f"{first.run_id}.")
    assert json.loads(old.read_text()) == first.to_json()


def test_a_damaged_record_is_named_set_aside_and_computed_again(cli, results_dir):
    cli(*QUICK)
    first = record_of(results_dir)
    path = Store(results_dir).path(first.run_id)
    path.write_text(path.read_text()[:100])
    outcome = cli(*QUICK)
    assert outcome.status == 0
    assert f"record {path} is damaged" in outcome.err
    assert values(record_of(results_dir)) == values(first)
    assert len(path.with_suffix(".damaged").read_text()) == 100


def test_records_of_another_version_are_not_mixed_in(cli, results_dir):
    cli(*QUICK)
    path = Store(results_dir).path(record_of(results_dir).run_id)
    old = path.read_text().replace('"schema": 2', '"schema": 0')
    path.write_text(old)
    outcome = cli(*QUICK)
    assert outcome.status == 1
    assert "record of schema 0, this version reads 2; give another results_dir=" in outcome.err
    assert path.read_text() == old


def test_a_run_that_is_at_work_elsewhere_is_left_alone(cli, results_dir):
    cli(*QUICK)
    done = record_of(results_dir)
    store = Store(results_dir)
    store.path(done.run_id).unlink()
    claim = store.claim(done.run_id)
    assert claim.take() is None
    outcome = cli("-m", *QUICK)
    assert outcome.status == 0
    assert f"1 runs are at work elsewhere, the first: process {os.getpid()}" in outcome.err
    assert store.load() == []
    claim.release()
    assert cli(*QUICK).status == 0
    assert values(record_of(results_dir)) == values(done)


def test_equal_configurations_of_a_sweep_are_computed_once_and_named(cli, results_dir):
    outcome = cli("-m", *LEARNED, "recon.lr=1e-3,0.001")
    assert outcome.status == 0, outcome.err
    assert "jobs #0, #1 are the same configuration, computed once" in outcome.err


def test_an_equal_job_of_the_sweep_is_not_elsewhere():
    """As of several processes at once: the one that has the run has ended as well."""
    left = {"run_id": "a", "running": "process 7 on here"}
    (line,) = _remarks([{"run_id": "a"}, left])
    assert line.startswith("jobs #0, #1 are the same configuration")
    first, *_ = _remarks([left, left])
    assert first == "2 runs are at work elsewhere, the first: process 7 on here"


def test_a_full_disk_is_one_line_and_loses_nothing(cli, results_dir, monkeypatch):
    cli(*QUICK)
    first = record_of(results_dir)

    def full(file):
        if "probe" not in os.readlink(f"/proc/self/fd/{file}"):  # the disk is full by then
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        outcome = cli(*QUICK, "rerun=true")
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1] == (
        f"error: {results_dir}/{first.run_id}.json: No space left on device; nothing "
        f"recorded is lost; make room, and run the same command again ({PLACES})"
    )
    assert record_of(results_dir) == first
    assert [p.name for p in results_dir.rglob("*.part")] == []


def test_a_sweep_does_not_end_well_where_a_job_has_left_no_record(tmp_path):
    """On a full disk neither the record nor the error may be written; a folder may be missing."""
    folder = tmp_path / "sweep"
    (folder / "0").mkdir(parents=True)
    (folder / "0" / "outcome.json").write_text(json.dumps({"run_id": "abc"}))
    sweep = SweepTable()
    sweep._count = 2
    cfg = OmegaConf.create(
        {"hydra": {"sweep": {"dir": str(folder)}, "runtime": {"choices": {}}, "sweeper": {},
                   "overrides": {"task": []}}, "results_dir": str(tmp_path / "results")}
    )  # fmt: skip
    with pytest.raises(SystemExit) as end:
        sweep.on_multirun_end(cfg)
    assert str(end.value).startswith(
        f"error: 2 of 2 runs failed, the first: job 0 has left no record; its log is in {folder}/0"
    )


def status(capsys, folder):
    capsys.readouterr()
    code = experiment(["status", str(folder)])
    captured = capsys.readouterr()
    return code, captured.out


def test_status_tells_done_failed_running_and_lost(cli, results_dir, tmp_path, capsys, monkeypatch):
    sweep = tmp_path / "sweep"
    assert cli("-m", *QUICK, "bits=2,3,4,5").status == 0
    assert status(capsys, sweep) == (0, f"{sweep}: 4 runs, 4 done\n")
    store = Store(results_dir)
    records = {r.bits: r for r in store.load()}
    failed = replace(records[2], status="failed", error="the GPU is on fire", value=None)
    store.write(failed)
    for bits in (3, 4):
        store.path(records[bits].run_id).unlink()
    claim = store.claim(records[3].run_id)
    claim.take()
    shutil.rmtree(sweep / "3")
    lines = status(capsys, sweep)[1].splitlines()
    claim.release()
    assert lines[0] == f"{sweep}: 4 runs, 1 failed, 1 running, 2 lost"
    assert lines[1] == "  #0 failed  bits=2: the GPU is on fire"
    assert lines[2].startswith(f"  #1 running bits=3: process {os.getpid()} on ")
    assert lines[3] == "  #2 lost    bits=4: no word of its end"
    assert lines[4] == "  #3 lost    bits=5: it was never started"
    assert lines[5] == "finish it with"
    command = lines[6].split()
    assert command[:3] == ["python", "run.py", "-m"]
    assert "retry_failed=true" in command
    # The command does finish it.
    own = [a for a in command[3:] if not a.startswith("hydra.")]
    assert cli("-m", *own).status == 0
    assert status(capsys, sweep)[1] == f"{sweep}: 4 runs, 4 done\n"
    assert len([r for r in store.load() if r.status == "ok"]) == 4


def test_status_of_no_sweep_is_one_line(capsys, tmp_path):
    assert experiment(["status", str(tmp_path)]) == 1
    assert "is not the folder of a sweep" in capsys.readouterr().err


def at_once(code, folder, seconds):
    """Run code in 32 processes that begin in so many seconds; each knows folder and number."""
    begin = str(time.time() + seconds)
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(folder), str(number), begin], cwd=ROOT)
        for number in range(32)
    ]
    assert [worker.wait() for worker in workers] == [0] * 32


WORKER = """
import json, sys, time
from pathlib import Path
from experiment.shared_cache import Cache
from results.records.record import Record
from results.records.store import Store

root, number, start = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
store, cache = Store(root / "results"), Cache(root / "cache", 1)
time.sleep(max(0.0, start - time.time()))
for run in range(12):
    run_id = f"run{run}"
    def make():
        (root / f"made-{run}-{number}").touch()
        return bytes([run]) * 50_000
    assert cache.get(f"entry{run}", make) == bytes([run]) * 50_000
    claim = store.claim(run_id)
    if claim.take() is None:
        if store.get_or_quarantine(run_id) is None:
            (root / f"ran-{run}-{number}").touch()
            time.sleep(0.01)
            store.write(Record(
                run_id, "ok", "m", "t", 1, "rtn", 4, 0, "top1", True, float(run), 1.0, {},
                {"top1": float(run)},
            ))
        claim.release()
    own = f"own{number}-{run}"
    store.write(Record(
        own, "ok", "m", "t", 1, "rtn", 4, 0, "top1", True, 1.0, 1.0, {}, {"top1": 1.0},
    ))
"""


def test_32_processes_at_once_lose_double_and_damage_nothing(tmp_path):
    at_once(WORKER, tmp_path, 4)
    records = Store(tmp_path / "results").load()
    assert len(records) == 12 + 32 * 12
    assert {r.value for r in records if r.run_id.startswith("run")} == set(range(12))
    for run in range(12):
        assert len(list(tmp_path.glob(f"made-{run}-*"))) == 1
        assert len(list(tmp_path.glob(f"ran-{run}-*"))) == 1
    left = [p.name for p in (tmp_path / "results").rglob("*") if p.suffix in (".part", ".dead")]
    assert left == []
    assert list((tmp_path / "results" / "running").iterdir()) == []


def test_the_leaderboard_as_a_wandb_table(cli, results_dir, tmp_path, capsys):
    import wandb

    cli(*QUICK)
    options = ["--results-dir", str(results_dir), "--dir", str(tmp_path)]
    assert results(["wandb", *options]) == 0
    wandb.teardown()
    (table,) = (tmp_path / "wandb").rglob("leaderboard*.json")
    shown = json.loads(table.read_text())
    row = dict(zip(shown["columns"], shown["data"][0], strict=True))
    assert row["model"] == "efficientnet_lite0"
    assert row["mean"] == record_of(results_dir).value


MIRROR = """
import sys, time
from results.records.record import Record
from experiment.wandb_logger import WandbLogger

number, start = int(sys.argv[2]), float(sys.argv[3])
time.sleep(max(0.0, start - time.time()))
logger = WandbLogger("flexround", "offline", sys.argv[1], "many")
logger.start(f"run{number}", f"name{number}", {"number": number})
logger.begin(["unit"], 50)
for step in range(50):
    logger.step("unit", step, 1.0)
logger.finish(Record(
    f"run{number}", "ok", "m", "t", 1, "rtn", 4, 0, f"metric{number}", True, 1.0, 1.0, {},
    {f"metric{number}": 1.0},
))
"""


@pytest.mark.slow
def test_32_wandb_runs_at_once_lose_none(tmp_path):
    at_once(MIRROR, tmp_path, 10)
    for number in range(32):
        (log,) = (tmp_path / "wandb").glob(f"offline-run-*-run{number}/*.wandb")
        assert f"final/metric{number}".encode() in log.read_bytes()


def start(tmp_path, cache_dir):
    args = [
        *LEARNED, "recon=qdrop", "act_bits=4", "activation=static_per_tensor",
        f"cache_dir={cache_dir}", f"results_dir={tmp_path}/results", "progress=false",
        f"hydra.run.dir={tmp_path}/run",
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "run.py", *args], cwd=ROOT, stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finished_units(folder):
    return len(list(folder.rglob("*.safetensors")))


@pytest.mark.slow
def test_killed_at_20_random_moments_the_record_is_the_undisturbed_one(tmp_path, cache_dir):
    assert start(tmp_path / "whole", cache_dir).wait() == 0
    expected = values(record_of(tmp_path / "whole" / "results"))
    units, draws = len(expected["blocks"]), random.Random(0)
    kills, resumed, folder = 0, 0, tmp_path / "0"
    while kills < 20:
        process = start(folder, cache_dir)
        have = finished_units(folder)
        resumed += have > 0
        # A moment after some unit that is still to come, or during imports and evaluation.
        until = draws.randint(have, units)
        while finished_units(folder) < until and process.poll() is None:
            time.sleep(0.005)
        time.sleep(draws.uniform(0, 0.3) if until else draws.uniform(0, 8))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            assert values(record_of(folder / "results")) == expected
            folder = tmp_path / str(kills)
    assert start(folder, cache_dir).wait() == 0
    assert values(record_of(folder / "results")) == expected
    assert list((folder / "results" / "unfinished").iterdir()) == []
    assert resumed >= 5, "hardly a kill met a finished unit"


def test_a_killed_runs_claim_is_taken_over(cli, results_dir):
    """The claim names a process that is no more."""
    cli(*QUICK)
    store = Store(results_dir)
    run_id = record_of(results_dir).run_id
    store.path(run_id).unlink()
    held = store.claim(run_id)
    held.take()
    facts = json.loads(held.path.read_text()) | {"started": "1", "token": "dead"}
    held.path.write_text(json.dumps(facts))
    assert cli(*QUICK).status == 0
    held.release()  # or its thread would warn in the middle of another test
    assert record_of(results_dir).status == "ok"
    assert Claim(held.path).owner() is None


def test_a_sweep_in_anothers_folder_does_not_see_its_jobs(cli, tmp_path, capsys):
    assert cli("-m", *QUICK, "checkpoint=/nowhere.safetensors,null", "bits=4,5").status == 1
    second = cli("-m", *QUICK, "bits=3,4")
    assert second.status == 0, second.err
    sweep = tmp_path / "sweep"
    assert "error" not in json.loads((sweep / "0" / "outcome.json").read_text())
    assert status(capsys, sweep) == (0, f"{sweep}: 2 runs, 2 done\n")


def test_two_sweeps_are_not_launched_in_one_folder(cli, tmp_path):
    claim = tmp_path / "sweep" / "launcher.json"
    claim.parent.mkdir()
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        owner = replace(me(), pid=other.pid, started=start_of(other.pid), token="other")
        claim.write_text(json.dumps(asdict(owner)))
        outcome = cli("-m", *QUICK)
        assert outcome.status == 1
        assert f"process {other.pid}" in outcome.err
        assert "is launching another sweep there" in outcome.err
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("option", ["hydra.run.dir", "results_dir"])
def test_a_folder_that_can_not_be_made_is_one_line(cli, tmp_path, option):
    (tmp_path / "file").write_text("")
    outcome = cli(*QUICK, f"{option}={tmp_path}/file/in")
    assert outcome.status == 1
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert f"{tmp_path}/file" in outcome.err
    assert f"{option}=" in outcome.err


@pytest.mark.slow  # no network is kept either
def test_a_cache_that_can_not_be_made_costs_time_alone(cli, tmp_path, results_dir):
    (tmp_path / "file").write_text("")
    outcome = cli(*QUICK, f"cache_dir={tmp_path}/file/in")
    assert outcome.status == 0, outcome.err
    assert outcome.err.count("is not kept") == 1
    assert outcome.err.count("no cache") == 1


def test_an_option_that_does_nothing_is_refused_where_a_preset_is_narrowed(cli):
    """The preset's own methods, which it would serve, are not in the sweep any more."""
    sweep = ("-m", "experiment=paper/table02", "scale=smoke", "quant=rtn", "recon.iters=9")
    outcome = cli(*sweep)
    assert outcome.status == 1
    assert "recon.iters=9 does nothing with the chosen quant" in outcome.err


def test_a_sweep_whose_table_can_not_be_made_does_not_end_well(cli, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a column")

    monkeypatch.setattr("results.tables.leaderboard.leaderboard", broken)
    outcome = cli("-m", *QUICK)
    assert outcome.status == 1
    assert "the runs are recorded, but not their table: 'a column'" in outcome.err


def test_a_table_by_bits_of_activations_has_runs_without_any(cli, results_dir, capsys):
    for more in ((), ("activation=static_per_tensor", "act_bits=8")):
        assert cli(*QUICK, *more).status == 0
    capsys.readouterr()
    assert results(["--results-dir", str(results_dir), "--by", "act_bits"]) == 0
    assert "A8" in capsys.readouterr().out
