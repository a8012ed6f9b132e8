"""Tests on the stand-in for a GPU, in a process of their own: torch can't forget a device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SHARED_CACHE

ROOT = Path(__file__).parents[1]
TESTS = (
    "tests/flexround/test_second_device.py",
    "tests/experiment/test_runs_on_a_second_device.py",
)


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_everything_runs_on_a_second_device(which, cache_dir):
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-m", which, *TESTS]
    env = {"STAND_IN": "1", "OMP_NUM_THREADS": "1", SHARED_CACHE: str(cache_dir)}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
