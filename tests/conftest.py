"""Fixtures: the command line in this process, and one cache of trained networks for all tests."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from hypothesis import settings

import run
from experiment.command_line import command_line

# One of timm's own miniature networks, made of the same blocks as the real ones, and the task whose
# networks are trained, and measured, in the least time.
TINY = ("model=efficientnet_lite0", "model.name=test_efficientnet", "task=digits")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str


# What a shell starts in the background ignores Ctrl-C, under nohup a hangup too, and so would the
# commands of the tests; a handler goes on ignoring it here and is none of theirs.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

# A busy machine is no failure.
settings.register_profile("default", deadline=None)
settings.load_profile("default")

Cli = Callable[..., Outcome]
GET_MODE = Hydra.get_mode

# Names the cache for the tests that a test runs in a process of its own.
SHARED_CACHE = "FLEXROUND_TEST_CACHE"


def some_slow(values: Iterable[Any], slow: Iterable[Any]) -> list[Any]:
    """Return values for parametrize; those in slow, which others stand for, are marked so."""
    return [pytest.param(v, marks=pytest.mark.slow) if v in slow else v for v in values]


# Of two processes one would end minutes after the other if the longest tests, each alone in its
# file, came last.
FIRST = ("test_second_device.py", "test_kill.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests; --no-loadscope-reorder keeps this order."""
    items.sort(key=lambda item: item.path.name not in FIRST)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the cache of the whole session, which its processes share."""
    if SHARED_CACHE in os.environ:
        return Path(os.environ[SHARED_CACHE])
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"


@pytest.fixture
def results_dir(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cache_dir: Path,
    results_dir: Path,
    tmp_path: Path,
) -> Cli:
    """Return a function that runs `python run.py ARGS` here and returns status, stdout, stderr."""

    def call(*args: str) -> Outcome:
        own = [
            f"cache_dir={cache_dir}",
            f"results_dir={results_dir}",
            f"hydra.run.dir={tmp_path}/run",
            f"hydra.sweep.dir={tmp_path}/sweep",
        ]
        given = [a.partition("=")[0] for a in args]
        own = [a for a in own if a.partition("=")[0] not in given]
        monkeypatch.setattr(sys, "argv", ["run.py", *args, *own])
        # Hydra composes the whole configuration to find hydra.mode, which presets alone set.
        sets_mode = {"experiment", "hydra.mode"} & set(given)
        monkeypatch.setattr(Hydra, "get_mode", GET_MODE if sets_mode else lambda *_, **__: None)
        status = 0
        capsys.readouterr()
        message = ""
        try:
            command_line(run.main)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            message = end.code if isinstance(end.code, str) else ""
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err + message)

    return call


@pytest.fixture(scope="module")
def kept_results() -> dict[tuple[str, ...], Path]:
    """Return copies of the results of a module's commands."""
    return {}


@pytest.fixture
def results_of(
    cli: Cli,
    results_dir: Path,
    kept_results: dict[tuple[str, ...], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Return a function that fills results_dir with what a command leaves; equal ones run once."""

    def call(*args: str) -> Path:
        if args not in kept_results:
            outcome = cli(*args)
            assert outcome.status == 0, outcome.err
            kept_results[args] = tmp_path_factory.mktemp("kept") / "results"
            shutil.copytree(results_dir, kept_results[args])
        else:
            shutil.copytree(kept_results[args], results_dir)
        return results_dir

    return call
