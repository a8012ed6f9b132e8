"""Report of one unit of reconstruction: errors, bits, time and peak memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from flexround.cost import Cost
from flexround.utils.memory import forget_peak

Curve = list[list[float]]


@dataclass(frozen=True)
class Errors:
    """Reconstruction loss over the calibration samples, and over those held out of them if any."""

    calibration: float
    held_out: float | None = None


@dataclass(frozen=True)
class Iterations:
    """What the iterations of a unit were.

    Attributes:
        taken: their number.
        cost: what they took.
        curve: [iteration, mini-batch's reconstruction loss] as it was read.
        held_out: [iterations taken, held-out error] where an early end looked at it.
    """

    taken: int = 0
    cost: Cost = field(default_factory=Cost)
    curve: Curve = field(default_factory=list)
    held_out: Curve = field(default_factory=list)


class Stopwatch:
    """Runs from its making to its report."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._start = device, time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            forget_peak()

    def report(
        self,
        name: str,
        bits: dict[str, int],
        before: Errors,
        after: Errors,
        iterations: Iterations,
        objectives: dict[str, list[float]] | None = None,
        unreached: Sequence[str] = (),
    ) -> BlockReport:
        """Return what became of the unit called name; curves are thinned."""
        return BlockReport(
            name=name,
            layers=bits,
            error_before=before.calibration,
            error_after=after.calibration,
            seconds=time.perf_counter() - self._start,
            peak_memory_gib=self._peak_memory_gib(),
            cost=iterations.cost,
            objectives=objectives or {},
            curve=thin(iterations.curve),
            unreached=list(unreached),
            iterations=iterations.taken,
            held_out_before=before.held_out,
            held_out_after=after.held_out,
            held_out_curve=thin(iterations.held_out),
        )

    def _peak_memory_gib(self) -> float:
        """Return the peak since the start: the GPU's, or on the CPU the whole process's.

        Where the system can't forget an earlier peak of the process, it is the peak so far.
        """
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


T = TypeVar("T")


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
        unreached: layers of experts that no calibration token was sent to, rounded to nearest.
        iterations: that were taken, fewer than the settings' where an early end was reached.
        held_out_before: error_before over the samples held out of calibration, None without any.
        held_out_after: error_after over them.
        held_out_curve: [iterations taken, held-out error] of an early end's looks, thinned.
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
    unreached: list[str] = field(default_factory=list)
    iterations: int = 0
    held_out_before: float | None = None
    held_out_after: float | None = None
    held_out_curve: Curve = field(default_factory=list)
