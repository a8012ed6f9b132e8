"""Progress bar for a terminal: which unit of how many, iteration, loss, time left."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from flexround.reconstruction.report import BlockReport


class _Console(Console):
    """A console whose reader may go: rich would end the command by a status of its own then."""

    def on_broken_pipe(self) -> None:
        """End the command as SIGPIPE does."""
        self.quiet = True
        raise SystemExit(128 + signal.SIGPIPE)


# Log lines and bars share one console, or they would write over each other.
console = _Console(stderr=True)


def quiet_libraries(progress: bool) -> None:
    """Turn the bars of other libraries off where ours is; tqdm is to be imported afterwards."""
    if not (progress and console.is_terminal):
        os.environ.setdefault("TQDM_DISABLE", "1")


class ConsoleHandler(logging.Handler):
    """Writes log lines above a bar that is being drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record as it is, unwrapped."""
        console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class ProgressBar:
    """Shows the whole reconstruction as one bar; silent when the console is not a terminal."""

    def __init__(self, enabled: bool = True) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("iteration {task.fields[iteration]}, loss {task.fields[loss]},"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not (enabled and console.is_terminal),
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, loss="-", iteration="-")
        self._units: list[str] = []
        self._iters = 0
        self._done = 0

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def begin(self, units: Sequence[str], iters: int) -> None:
        """Learn how long the way is."""
        self._units, self._iters, self._done = list(units), iters, 0
        self._bar.update(self._task, total=len(units) * max(iters, 1))

    def step(self, unit: str, iteration: int, error: float) -> None:
        """Move the bar to this iteration of unit."""
        self._bar.update(
            self._task,
            completed=self._done * self._iters + iteration + 1,
            description=f"unit {self._done + 1}/{len(self._units)} {unit}",
            iteration=f"{iteration + 1}/{self._iters}",
            loss=f"{error:.3g}",
        )

    def end_block(self, report: BlockReport) -> None:
        """Count one unit as done."""
        self._done += 1
        self._bar.update(self._task, completed=self._done * max(self._iters, 1))
