"""Twelve runs on a real SLURM, of which one is cancelled, one killed, and one raises."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from results.records.store import Store
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]
SWEEP = (*TINY, "quant=rtn,adaround,flexround", "bits=5,4,3,2", "recon.iters=60", "num_samples=128")
CANCELLED, KILLED, RAISES = 5, 6, 11

# Python imports this at its start, wherever the run is: it makes one run fail as a node would.
FAULT = """
import os, sys
from pathlib import Path

if os.environ.get("SLURM_ARRAY_TASK_ID") == "11" and Path(os.environ["FAULT"]).exists():
    class Break:
        def find_spec(self, name, path=None, target=None):
            if name == "tasks.vision.digits":
                raise RuntimeError("the node has lost its disk")

    sys.meta_path.insert(0, Break())
"""


def answer(*command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def slurm():
    pytest.importorskip("submitit", reason="pip install -e '.[slurm]'")
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no SLURM answers to sinfo; docs/sweeps.md says how to bring one up")


def wait_for(happened, seconds=240):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.1)


@pytest.mark.slurm
def test_a_sweep_with_three_faults_is_finished_by_the_command_that_status_prints(
    slurm, tmp_path, cache_dir, monkeypatch
):
    sweep, store = tmp_path / "sweep", Store(tmp_path / "results")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FAULT)
    (tmp_path / "fault").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("FAULT", str(tmp_path / "fault"))
    options = [f"results_dir={store.root}", f"cache_dir={cache_dir}", "hydra/launcher=slurm"]
    launcher = subprocess.Popen(
        [sys.executable, "run.py", "-m", *SWEEP, *options, f"hydra.sweep.dir={sweep}"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip

    def working(number):
        """Return the claim of a run that has finished a unit and not all, or None."""
        outcome = sweep / str(number) / "outcome.json"
        if not outcome.exists():
            return None
        run_id = outcome.read_text().partition('"run_id": "')[2].partition('"')[0]
        units = len(list(store.unfinished(run_id).glob("*.safetensors"))) if run_id else 0
        return store.claim(run_id).owner() if units else None

    wait_for(lambda: working(CANCELLED))
    owner = working(CANCELLED)
    assert answer("scancel", owner.job)[0] == 0
    wait_for(lambda: working(KILLED))
    os.kill(working(KILLED).pid, signal.SIGKILL)
    said = launcher.communicate(timeout=600)[0]
    assert launcher.returncode == 1, said

    code, first = answer(sys.executable, "-m", "experiment", "status", str(sweep))
    assert code == 0
    print(said, first, sep="\n")
    lines = first.splitlines()
    assert lines[0] == f"{sweep}: 12 runs, 9 done, 1 failed, 2 lost"
    assert f"#{RAISES} failed" in first
    assert "RuntimeError: the node has lost its disk" in first
    assert f"#{CANCELLED} lost" in first
    assert f"#{KILLED} lost" in first
    command = lines[-1].split()
    assert command[:3] == ["python", "run.py", "-m"]
    assert "retry_failed=true" in command

    (tmp_path / "fault").unlink()
    code, last = answer(sys.executable, *command[1:], f"hydra.sweep.dir={tmp_path}/again")
    print(last)
    assert code == 0
    assert "going on after" in "".join(p.read_text() for p in tmp_path.rglob("run.log"))
    assert answer(sys.executable, "-m", "experiment", "status", str(sweep))[1] == (
        f"{sweep}: 12 runs, 12 done\n"
    )
    records = store.load()
    assert len(records) == 12
    assert {r.status for r in records} == {"ok"}
    # The row of a method holds four bit widths.
    (row,) = [line for line in last.splitlines() if line.startswith("| efficientnet_lite0 | flex")]
    assert "-  " not in row.partition("flexround")[2].replace("(-", "(")
