"""A run that is killed at any mutation of a file leaves the same command what it needs.

Records, outcomes, artifacts and networks are those of the undisturbed command bit for bit, times
aside; what is left is nothing, or what `python -m results clean` finds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def killed(*args):
    """Return what killed.py has found."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), *args]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["bad"] == []
    return found["counts"]


def test_killed_at_some_mutations_a_run_ends_as_the_undisturbed_one():
    counts = killed("points", "vision", "--first", "5", "--step", "32")
    assert counts["status -9"] == counts["identical"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("case", ["vision", "rerun", "offload", "finetune", "digits", "topics"])
def test_killed_at_every_mutation_a_command_ends_as_the_undisturbed_one(case):
    counts = killed("points", case)
    assert counts["status -9"] == counts["identical"] == counts["points"] > 10


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_ended_at_every_mutation_a_run_says_so_in_one_line(number, status):
    counts = killed("points", "vision", "--signal", number)
    assert counts[f"status {status}"] >= counts["points"] - 2  # which come after the end
    assert counts["identical"] == counts["points"]


@pytest.mark.slow
def test_in_a_storm_of_signals_a_run_ends_as_the_undisturbed_one():
    counts = killed("storm", "flexround", "--rounds", "12")
    assert counts["identical"] == counts["rounds"] == 12
