"""Split of a run's seconds: which part of a command line takes how much of the processor's time.

`python -m benchmarks.split OVERRIDES` does what `python run.py OVERRIDES` does and prints a table:
the processor's seconds of each part, without those of the parts that it calls. What no part names
is the rest: Python, Hydra's composition, what was not thought of.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

# Part of the table: where its functions are, as module:name or module:class.name.
PARTS = {
    "imports": ("experiment.execute:",),
    "names of the run (identity)": (
        "experiment.job:current_job",
        "experiment.job:Job.check_unchanged",
    ),
    "rehearsal": ("experiment.execute:rehearse",),
    "network: load, find its blocks": (
        "flexround.models.language:LanguageModel.adapter",
        "flexround.models.vision:VisionModel.adapter",
    ),
    "calibration samples": (
        "tasks.language.perplexity:LanguageModeling.calibration",
        "tasks.vision.digits:Digits.calibration",
        "tasks.vision.scattered_digits:ScatteredDigits.calibration",
    ),
    "checks": (
        "flexround.reconstruction.reconstruction:Reconstruction.check",
        "flexround.reconstruction.layerwise:Solve.check",
    ),
    "digests": (
        "experiment.full_precision:digest_of_model",
        "experiment.full_precision:digest_of",
        "flexround.reconstruction.checkpoints:FileCheckpoints.save",
    ),
    "evaluation": (
        "tasks.language.perplexity:LanguageModeling.evaluate",
        "tasks.vision.base:VisionTask.evaluate",
    ),
    "outputs kept for other runs": ("experiment.shared_tensors:SharedOutputs.get",),
    "recording of the first block's inputs": (
        "flexround.models.language_adapter:LanguageAdapter.record_calls",
        "flexround.models.base:ModelAdapter.record_calls",
    ),
    "ranges": (
        "flexround.ranges:LpSearch.__call__",
        "flexround.ranges:LpSearch2D.__call__",
        "flexround.ranges:MinMax.__call__",
    ),
    "targets and streams": ("flexround.reconstruction.block_walk:Walk.replay_all",),
    "errors before and after": ("flexround.reconstruction.job:UnitJob.error",),
    "iterations": ("flexround.reconstruction.optimize:UnitOptimizer.run",),
    "attach and freeze": (
        "flexround.reconstruction.learning:attach",
        "flexround.reconstruction.learning:freeze",
    ),
}


class Split:
    """The processor's seconds of each part, those of the parts inside of it taken off."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.calls: dict[str, int] = dict.fromkeys(PARTS, 0)
        self._inside: list[float] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return function, whose time counts for part."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                taken = time.process_time() - start
                self.seconds[part] += taken - self._inside.pop()
                self.calls[part] += 1
                if self._inside:
                    self._inside[-1] += taken

        return call

    def table(self) -> str:
        """Return the table in Markdown."""
        whole = time.process_time()
        rows = [(n, self.calls[n], s) for n, s in self.seconds.items() if self.calls[n]]
        rows += [("the rest", 1, whole - sum(s for _, _, s in rows)), ("all", 1, whole)]
        lines = [f"| {name} | {calls} | {seconds:.2f} |" for name, calls, seconds in rows]
        return "\n".join(["| part | calls | CPU seconds |", "|---|---|---|", *lines])


def watched(split: Split, stack: ExitStack) -> None:
    """Have split time all functions of PARTS until stack ends."""
    for part, places in PARTS.items():
        for place in places:
            module, _, path = place.partition(":")
            if not path:
                split.timed(part, importlib.import_module)(module)
                continue
            owner: Any = importlib.import_module(module)
            *within, name = path.split(".")
            for step in within:
                owner = getattr(owner, step)
            own = vars(owner)[name]
            stack.enter_context(mock.patch.object(owner, name, split.timed(part, own)))


def main() -> None:
    """Run the command line and print the table."""
    import run

    split = Split()
    with ExitStack() as stack:
        watched(split, stack)
        try:
            run.command_line(run.main)
        finally:
            print(split.table())


if __name__ == "__main__":
    main()
