"""Who is told how a reconstruction goes: the progress bar, the log, a wandb run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from flexround.cost import Cost

log = logging.getLogger(__name__)

T = TypeVar("T")
Curve = list[list[float]]


def thin(values: list[T], most: int = 33) -> list[T]:
    """Return values, or where there are more than most that many of them, first and last kept."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


@dataclass(frozen=True)
class BlockReport:
    """What became of one unit of reconstruction.

    Attributes:
        name: the block's or layer's name in the model.
        layers: bits of every layer in it and of every activation that is quantized, by name.
        error_before: reconstruction loss over the calibration set, quantizers as they start.
        error_after: the same after optimisation, with the weights as they are kept.
        seconds: wall time of the unit.
        peak_memory_gib: peak of the GPU, or of the process on the CPU, in this unit.
        cost: what the method itself took.
        objectives: a solver's error of each layer: of round-to-nearest on the same scales, where
            its search starts, in steps of it, and in the end; thinned where there are many.
        curve: [iteration, mini-batch's reconstruction loss] pairs, thinned where there are many;
            empty where nothing is learned by gradients. Lists, so that JSON gives back the same.
    """

    name: str
    layers: dict[str, int]
    error_before: float
    error_after: float
    seconds: float
    peak_memory_gib: float
    cost: Cost = field(default_factory=Cost)
    objectives: dict[str, list[float]] = field(default_factory=dict)
    curve: Curve = field(default_factory=list)


class Observer(Protocol):
    """Told of each step of a reconstruction."""

    def begin(self, units: Sequence[str], iters: int) -> None:
        """Called before each pass, with all its units in order and the iterations of each."""
        ...

    def step(self, unit: str, iteration: int, error: float) -> None:
        """Called every few iterations with the mini-batch's reconstruction loss."""
        ...

    def end_block(self, report: BlockReport) -> None:
        """Called when a unit is finished."""
        ...


class Reports:
    """Keeps the reports and writes one log line a unit."""

    def __init__(self) -> None:
        self.blocks: list[BlockReport] = []
        self._units = self._done = 0

    def begin(self, units: Sequence[str], iters: int) -> None:
        """Log the list of units."""
        self._units, self._done = len(units), 0
        log.info("%d units of %d iterations: %s", len(units), iters, ", ".join(units))

    def step(self, unit: str, iteration: int, error: float) -> None:
        """Nothing: one line a unit is enough for a log."""

    def end_block(self, report: BlockReport) -> None:
        """Keep and log the report."""
        self.blocks.append(report)
        self._done += 1
        bits = ", ".join(f"{name}: {bits} bit" for name, bits in report.layers.items())
        log.info(
            "unit %d/%d %s: error %.4g -> %.4g in %.1f s (%s)",
            self._done, self._units, report.name,
            report.error_before, report.error_after, report.seconds, bits,
        )  # fmt: skip
