"""Claims: one owner at a time, the dead ones' taken over, the damaged ones set aside."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from results.records.claim import Claim, me


def held(path, **changes):
    """Write a claim of some other process."""
    path.write_text(json.dumps(asdict(replace(me(), token="other", **changes))))
    return Claim(path, beat=0.05)


def test_one_owner_at_a_time(tmp_path):
    path = tmp_path / "it"
    first, second = Claim(path), Claim(path)
    assert first.take() is None
    owner = second.take()
    assert owner.pid == os.getpid()
    assert str(owner).startswith(f"process {os.getpid()} on ")
    second.release()
    assert path.exists(), "only its owner can give it back"
    first.release()
    assert second.take() is None
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_dead_process_of_this_machine_is_replaced_at_once(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    claim = held(tmp_path / "it", pid=child.pid)
    assert not claim.seems_alive()
    assert claim.take() is None
    claim.release()


def test_a_reused_process_id_is_another_process(tmp_path):
    claim = held(tmp_path / "it", started="1")
    assert claim.take() is None
    claim.release()


def elsewhere(path, age, **more):
    claim = held(path, host="node9", machine="node9 another boot", **more)
    past = time.time() - age
    os.utime(path, (past, past))
    return claim


def test_a_process_elsewhere_that_beats_is_left_alone(tmp_path):
    claim = elsewhere(tmp_path / "it", age=0)
    assert claim.seems_alive()
    assert claim.take().host == "node9"


def test_a_process_elsewhere_that_is_silent_is_replaced(tmp_path):
    claim = elsewhere(tmp_path / "it", age=3600)
    assert not claim.seems_alive()
    assert claim.take() is None
    claim.release()


def test_a_clock_that_jumps_takes_nothing_from_a_living_owner(tmp_path, monkeypatch):
    """Its beats look an hour old, and still they come."""
    claim = elsewhere(tmp_path / "it", age=3600)
    beats = iter(range(1, 100))
    pause = time.sleep

    def sleep(seconds):
        pause(seconds)
        past = time.time() - 3600 + next(beats)
        os.utime(claim.path, (past, past))

    monkeypatch.setattr("results.records.claim.time.sleep", sleep)
    assert claim.take().host == "node9"


def in_slurm(monkeypatch, **facts):
    for name, value in facts.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_a_job_that_slurm_has_queued_again_takes_its_own_claim_over(tmp_path, monkeypatch):
    """Its first attempt died a moment ago on another node, where its last beat looks alive."""
    claim = elsewhere(tmp_path / "it", age=0, job="14_3", restarts=0)
    in_slurm(monkeypatch, JOB_ID="18", ARRAY_JOB_ID="14", ARRAY_TASK_ID="2", RESTART_COUNT="1")
    assert claim.take().job == "14_3", "that is another task of the array"
    in_slurm(monkeypatch, ARRAY_TASK_ID="3")
    assert claim.take() is None
    assert claim.owner().restarts == 1
    claim.release()


@pytest.mark.parametrize("count", [0, None], ids=["now", "before it was kept"])
def test_two_nodes_of_one_attempt_take_nothing_from_each_other(tmp_path, monkeypatch, count):
    """`salloc -N2`, `srun python run.py -m ...`: both have the job's id, and both are at work."""
    claim = elsewhere(tmp_path / "it", age=0, job="7", restarts=count, step="0", process="0")
    if count is None:
        facts = json.loads(claim.path.read_text())
        for name in ("restarts", "step", "process"):
            del facts[name]
        claim.path.write_text(json.dumps(facts))
    in_slurm(monkeypatch, JOB_ID="7", STEP_ID="0", PROCID="1")
    held = claim.take()
    assert (held.job, held.host) == ("7", "node9")
    assert me().restarts == 0
    assert str(me()).endswith("(SLURM job 7, step 0, process 1)")


def test_the_owner_beats(tmp_path):
    claim = Claim(tmp_path / "it", beat=0.05)
    assert claim.take() is None
    os.utime(claim.path, (0, 0))
    deadline = time.monotonic() + 20
    while claim.path.stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    claim.release()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"host": "node9"}'])
def test_a_damaged_claim_is_named_and_set_aside(tmp_path, caplog, text):
    path = tmp_path / "it.json"
    path.write_text(text)
    claim = Claim(path)
    assert claim.take() is None
    assert f"claim {path} is damaged" in caplog.text
    assert path.with_suffix(".damaged").read_text() == text
    claim.release()


def test_who_was_taken_over_leaves_the_new_owners_claim(tmp_path):
    path = tmp_path / "it"
    first = Claim(path)
    first.take()
    held(path, pid=os.getpid())
    first.release()
    assert Claim(path).owner().token == "other"


def unreadable(path, monkeypatch, number=errno.EACCES):
    """Have reading path fail until the returned list is emptied."""
    real, fails = Path.read_bytes, [True]

    def read(self):
        if fails and self == path:
            raise OSError(number, os.strerror(number), str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr("flexround.utils.file_errors.WAITS", (0.0,))
    return fails


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_heartbeat_survives_an_error_of_reading(tmp_path, monkeypatch, caplog, number):
    claim = Claim(tmp_path / "it", beat=0.02)
    assert claim.take() is None
    fails = unreadable(claim.path, monkeypatch, number)
    time.sleep(0.2)
    os.utime(claim.path, (0, 0))
    deadline = time.monotonic() + 20
    while claim.path.stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    fails.clear()
    assert "taken over" not in caplog.text
    claim.release()
    assert not claim.path.exists()


def test_a_claim_that_can_not_be_read_is_left_while_it_beats(tmp_path, monkeypatch):
    path = tmp_path / "it.json"
    held(path)
    unreadable(path, monkeypatch)
    assert str(Claim(path).take()) == "a process whose claim can't be read"
    os.utime(path, (1, 1))
    with pytest.raises(ValueError, match="can't be read, and whoever holds it is silent"):
        Claim(path, beat=0.01).take()
    assert [p.name for p in tmp_path.iterdir()] == ["it.json"]


def test_a_process_that_is_hidden_is_not_dead(tmp_path, monkeypatch):
    # Mounted with hidepid, /proc shows other users' processes to nobody; a signal tells that they
    # are there.
    path = tmp_path / "it.json"
    held(path, pid=os.getppid(), started="1")
    real = Path.read_bytes

    def hidden(self):
        if str(self) == f"/proc/{os.getppid()}/stat":
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", hidden)
    assert Claim(path).owner().in_table


def test_a_deleted_folder_ends_no_heartbeat_and_no_run(tmp_path, caplog):
    claim = Claim(tmp_path / "running" / "it", beat=0.02)
    assert claim.take() is None
    shutil.rmtree(tmp_path / "running")
    deadline = time.monotonic() + 20
    while "is gone" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    claim.release()
    assert claim.take() is None
    claim.release()
