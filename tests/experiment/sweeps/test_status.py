"""What `status` says of a sweep that computes anew, that lies elsewhere, or has other folders."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from experiment.__main__ import main as experiment
from experiment.config import composed
from experiment.sweeps.jobs import LAUNCHER
from experiment.sweeps.status import Sweep
from results.records.claim import Claim
from results.records.store import Store
from tests.experiment.sweeps.test_sweeps import QUICK, break_evaluation


@pytest.fixture
def status(capsys, tmp_path):
    """Return a function that returns the lines of a sweep's state."""

    def call():
        capsys.readouterr()
        assert experiment(["status", str(tmp_path / "sweep")]) == 0
        return capsys.readouterr().out.splitlines()

    return call


def test_a_rerun_that_fails_is_not_done_by_the_record_of_before(cli, status, monkeypatch):
    assert cli("-m", *QUICK, "bits=3,4").status == 0
    with monkeypatch.context() as patch:
        break_evaluation(patch)
        assert cli("-m", *QUICK, "bits=3,4", "rerun=true").status == 1
    lines = status()
    assert lines[0].endswith(": 2 runs, 2 failed")
    assert lines[1] == "  #0 failed  bits=3: RuntimeError: the GPU is on fire"
    command = shlex.split(lines[-1])
    assert "rerun=true" in command
    assert cli("-m", *(a for a in command[3:] if not a.startswith("hydra."))).status == 0
    assert status()[0].endswith(": 2 runs, 2 done")


def test_a_rerun_that_was_killed_is_not_done_by_the_record_of_before(cli, status, results_dir):
    assert cli(*QUICK).status == 0
    assert cli("-m", *QUICK, "rerun=true").status == 0
    assert status()[0].endswith(": 1 runs, 1 done")
    (before,) = (results_dir / "history").glob("*.json")
    (record,) = Store(results_dir).load()
    shutil.copy(before, Store(results_dir).path(record.run_id))
    lines = status()
    assert lines[0].endswith(": 1 runs, 1 lost")
    assert "rerun=true" in lines[-1]


def test_an_equal_job_of_a_rerun_is_computed_once(cli, results_dir):
    assert cli("-m", *QUICK, "rerun=true", "seed=0,0").status == 0
    assert not list((results_dir / "history").glob("*.json")), "the second takes the first one's"
    assert cli("-m", *QUICK, "rerun=true", "seed=0,0").status == 0
    assert len(list((results_dir / "history").glob("*.json"))) == 1


def test_a_job_that_says_nothing_yet_is_at_work_while_the_sweep_is(cli, status, tmp_path):
    assert cli("-m", *QUICK).status == 0
    (tmp_path / "sweep" / "0" / "outcome.json").unlink()
    assert status()[1].endswith(": no word of its end")
    claim = Claim(tmp_path / "sweep" / LAUNCHER)
    assert claim.take() is None
    assert status()[0].endswith(": 1 runs, 1 running")
    claim.release()


def test_the_command_that_finishes_a_fine_tuning_is_one_that_it_takes(status, tmp_path):
    folder = tmp_path / "sweep"
    given = ["model=bert_base", "task=glue/mrpc,glue/rte"]
    cfg = composed(given, RunMode.MULTIRUN, config="finetune")
    OmegaConf.set_struct(cfg, False)
    cfg.hydra.runtime.cwd, cfg.hydra.job.config_name = str(tmp_path), "finetune"
    (folder / "0").mkdir(parents=True)
    OmegaConf.save(cfg, folder / "multirun.yaml")
    (folder / "0" / "outcome.json").write_text(json.dumps({"error": "out of memory"}))
    lines = status()
    assert lines[0].endswith(": 2 runs, 1 failed, 1 lost")
    assert lines[-1] == f"  python finetune.py -m {given[0]} {given[1]}"


def test_a_later_attempt_elsewhere_does_what_has_failed(cli, status, monkeypatch):
    with monkeypatch.context() as patch:
        break_evaluation(patch)
        assert cli("-m", *QUICK).status == 1
    assert status()[0].endswith(": 1 runs, 1 failed")
    assert cli(*QUICK, "retry_failed=true").status == 0
    assert status()[0].endswith(": 1 runs, 1 done")


def test_a_relative_results_dir_is_below_where_the_sweep_was_begun(
    cli, status, tmp_path, monkeypatch
):
    (tmp_path / "begun").mkdir()
    monkeypatch.chdir(tmp_path / "begun")
    assert cli("-m", *QUICK, "results_dir=results").status == 0
    monkeypatch.chdir(tmp_path)
    assert status()[0].endswith(": 1 runs, 1 done")


def test_jobs_in_folders_without_numbers_are_refused_before_any(cli, results_dir):
    """Nothing would find what has become of them."""
    outcome = cli("-m", *QUICK, "bits=1,3", "hydra.sweep.subdir='job_${hydra.job.num}'")
    assert outcome.status == 1
    assert outcome.err.splitlines() == [
        "error: hydra.sweep.subdir=job_${hydra.job.num}: the end of a sweep and status find its "
        "jobs by number; leave it out"
    ]
    assert not results_dir.exists()


def test_a_run_of_another_array_that_slurm_runs_is_running(cli, status, results_dir, monkeypatch):
    """This sweep's queue knows nothing of another sweep's jobs, which may have the same run."""
    assert cli("-m", *QUICK).status == 0
    (record,) = Store(results_dir).load()
    Store(results_dir).path(record.run_id).unlink()
    monkeypatch.setenv("SLURM_JOB_ID", "75")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "75")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    claim = Store(results_dir).claim(record.run_id)
    claim.take()
    try:
        for own, state in ({"76"}, "1 running"), ({"75"}, "1 lost"):
            monkeypatch.setattr(Sweep, "_submitted", lambda _, own=own: sorted(own))
            monkeypatch.setattr("experiment.sweeps.status.queued", lambda _: set())
            assert status()[0].endswith(f": 1 runs, {state}")
    finally:
        claim.release()
