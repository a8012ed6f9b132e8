"""Stages of a reconstruction, their seconds and peaks of memory, seen from outside of the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest import mock

import torch

from flexround.reconstruction import learning
from flexround.reconstruction.block_walk import Walk
from flexround.reconstruction.job import UnitJob

GIB = 2**30
# What is called in a stage: where it is looked up, and its name there.
CALLED: dict[str, tuple[Any, str]] = {
    "targets": (Walk, "replay_all"),
    "ranges": (learning, "attach"),
    "iterations": (learning, "learn"),
    "baking": (learning, "freeze"),
    "evaluation": (UnitJob, "error"),
}


class Stages:
    """Seconds and peak of each stage, and of the whole between its `watched` and its end.

    Attributes:
        peaks: GiB that torch has allocated on the card at most, by stage.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the stages of what runs in the context.

        Raises:
            ValueError: when a stage's function is not where it was.
        """
        missing = [name for place, name in CALLED.values() if not hasattr(place, name)]
        if missing:
            raise ValueError(f"{', '.join(missing)}: not where benchmarks/gpu/stages.py looks")
        with ExitStack() as stack:
            for stage, (place, name) in CALLED.items():
                seen = self._seen(stage, getattr(place, name))
                stack.enter_context(mock.patch.object(place, name, seen))
            with self._stage("whole"):
                yield

    def _seen(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._stage(stage):
                return function(*args, **kwargs)

        return call

    @contextmanager
    def _stage(self, stage: str) -> Iterator[None]:
        self._note_peak()
        start = self._now()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + self._now() - start
            self._note_peak(stage)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _note_peak(self, stage: str = "between") -> None:
        """Count the peak since the last call for stage and for the whole; begin a new one."""
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) / GIB
            torch.cuda.reset_peak_memory_stats(self._device)
            for name in dict.fromkeys((stage, "whole")):
                self.peaks[name] = max(self.peaks.get(name, 0.0), peak)
