"""Callbacks of a reconstruction: the progress bar, the log, a wandb run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from flexround.reconstruction.report import BlockReport

log = logging.getLogger(__name__)


class Callback(Protocol):
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


class ReportLog:
    """Keeps the reports and writes one log line a unit."""

    def __init__(self) -> None:
        self.blocks: list[BlockReport] = []
        self._units = self._done = 0

    def begin(self, units: Sequence[str], iters: int) -> None:
        """Log the list of units."""
        self._units, self._done = len(units), 0
        learned = f" of {iters} iterations" if iters else ""  # solved or rounded: none
        log.info("%d units%s: %s", len(units), learned, ", ".join(units))

    def step(self, unit: str, iteration: int, error: float) -> None:
        """Nothing: one line a unit is enough for a log."""

    def end_block(self, report: BlockReport) -> None:
        """Keep and log the report."""
        self.blocks.append(report)
        self._done += 1
        bits = ", ".join(f"{name}: {bits} bit" for name, bits in report.layers.items())
        log.info(
            "unit %d/%d %s: error %.4g -> %.4g%s in %.1f s (%s)",
            self._done, self._units, report.name,
            report.error_before, report.error_after, _held_out(report), report.seconds, bits,
        )  # fmt: skip
        if report.unreached:
            log.warning(
                "unit %s: no calibration token is sent to %s; rounded to nearest",
                report.name, ", ".join(report.unreached),
            )  # fmt: skip


def _held_out(report: BlockReport) -> str:
    """Return in words what is known of the samples held out; nothing where there are none."""
    if report.held_out_before is None or report.held_out_after is None:
        return ""
    text = f", held out {report.held_out_before:.4g} -> {report.held_out_after:.4g}"
    return text + (f" in {report.iterations} iterations" if report.held_out_curve else "")
