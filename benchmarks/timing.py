"""Timing of iterations: of the loop by a callback, of anything else by a clock, taken in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch.utils.benchmark import Measurement, TaskSpec

from flexround.reconstruction.report import BlockReport

STEPS = 10  # iterations a measurement: from one reading of the loss to the next
Run = Callable[[], float]


class Clock:
    """A callback that times the iterations from the first reading of the loss to the last."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def begin(self, units: Sequence[str], iters: int) -> None:
        """Nothing to do."""

    def step(self, unit: str, iteration: int, error: float) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def end_block(self, report: BlockReport) -> None:
        """Nothing to do."""

    def seconds(self) -> float:
        """Return what an iteration took, and start anew."""
        first, *_, last = self.times
        self.times.clear()
        return (last - first) / STEPS


def timed(step: Callable[[], object]) -> Run:
    """Return what runs step STEPS times and returns the seconds that each took."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        return (time.perf_counter() - start) / STEPS

    return run


def summary(seconds: Sequence[float]) -> Measurement:
    """Return times of the same thing with their median and quartiles."""
    return Measurement(1, list(seconds), TaskSpec("", "", num_threads=torch.get_num_threads()))


def measured(runs: dict[str, Run], rounds: int) -> dict[str, Measurement]:
    """Return the times of an iteration of each of runs, taken in turns after one to warm up."""
    for run in runs.values():
        run()
    turns = [{name: run() for name, run in runs.items()} for _ in range(rounds)]
    return {name: summary([turn[name] for turn in turns]) for name in runs}
