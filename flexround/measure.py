"""Time and peak memory of one unit of reconstruction."""

from __future__ import annotations

import contextlib
import resource
import time
from pathlib import Path

import torch

from flexround.cost import Cost
from flexround.observers import BlockReport, Curve, thin

PEAK = Path("/proc/self/clear_refs")  # man 5 proc: 5 resets the peak resident set


class Stopwatch:
    """Runs from its making to its report."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._start = device, time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):  # Linux alone can forget a process's peak
                PEAK.write_text("5")

    def report(
        self,
        name: str,
        bits: dict[str, int],
        error_before: float,
        error_after: float,
        cost: Cost,
        objectives: dict[str, list[float]] | None = None,
        curve: Curve | None = None,
    ) -> BlockReport:
        """Return what became of the unit called name; curve is thinned."""
        return BlockReport(
            name=name,
            layers=bits,
            error_before=error_before,
            error_after=error_after,
            seconds=time.perf_counter() - self._start,
            peak_memory_gib=self._peak_memory_gib(),
            cost=cost,
            objectives=objectives or {},
            curve=thin(curve or []),
        )

    def _peak_memory_gib(self) -> float:
        """Return the peak since the start: the GPU's, or on the CPU the whole process's.

        Where the system can't forget an earlier peak of the process, it is the peak so far.
        """
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
