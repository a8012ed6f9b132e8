"""Synchronisations: places inside of the iterations where the processor waits for the GPU.

On a GPU torch's own debug mode tells each of them (torch.cuda.set_sync_debug_mode); the line of our
code is read from the stack. Without a GPU the operations that read a value or depend on one (item,
nonzero, indexing by a mask) stand in for them: copies from one device to another are not seen.
Readings of the loss, every READ_EVERY iterations, are counted by themselves.
"""

from __future__ import annotations

import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.cases import TinyCase, quantized
from benchmarks.gpu.context import Context, Row
from benchmarks.gpu.methods import is_solver, names
from benchmarks.gpu.store import ROOT
from flexround.reconstruction.optimize import UnitOptimizer

OURS = str(ROOT / "flexround")
READING = "_read"  # the function that reads the loss now and then
SHOWN = 6  # lines of a row
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select",
         "aten::unique", "aten::unique_dim", "aten::_unique2")  # fmt: skip
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_")


class Places:
    """Lines of our code where the processor waits, and how often."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.iterations = 0
        self._lock = threading.Lock()  # backward passes on a GPU run in threads of their own

    def add(self) -> None:
        """Count the place that the stack shows."""
        frames = [f for f in traceback.extract_stack() if f.filename.startswith(OURS)]
        if not frames:  # a thread of autograd without a function of ours
            place = "torch, backward pass"
        elif frames[-1].name == READING:
            place = READING
        else:
            last = frames[-1]
            place = f"{Path(last.filename).relative_to(ROOT)}:{last.lineno} ({last.line})"
        with self._lock:
            self.counts[place] += 1

    @contextmanager
    def counted(self, cuda: bool) -> Iterator[None]:
        """Count what happens inside of the iterations of all units that learn in the context."""
        watch = self._warnings if cuda else self._operations
        run: Callable[..., Any] = UnitOptimizer.run

        def watched(own: UnitOptimizer, *args: Any, **kwargs: Any) -> Any:
            with watch():
                found = run(own, *args, **kwargs)
            self.iterations += own.iters
            return found

        with mock.patch.object(UnitOptimizer, "run", watched):
            yield

    @contextmanager
    def _warnings(self) -> Iterator[None]:
        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            if "called a synchronizing" in str(message):
                self.add()

        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            with mock.patch.object(warnings, "showwarning", show):
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    yield
                finally:
                    torch.cuda.set_sync_debug_mode(before)

    @contextmanager
    def _operations(self) -> Iterator[None]:
        with _Reads(self):
            yield


class _Reads(TorchDispatchMode):
    """Counts the operations that a GPU would be waited for."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self._places = places

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        name = func.name().partition(".")[0]
        by_mask = name in INDEXING and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in READS or by_mask:
            self._places.add()
        return func(*args, **(kwargs or {}))


def cases(tiny: bool) -> list[TinyCase]:
    """Return every learned method, and the settings that add something to an iteration."""
    learned = [name for name in names() if not is_solver(name) and name != "rtn"]
    plain = [TinyCase("llama", name) for name in learned]
    around = [
        TinyCase("vision", "flexround"),
        TinyCase("vision", "flexround", "static, fp", "qdrop"),
        TinyCase("bert, padded", "flexround"),
    ]
    if tiny:
        return [*plain, *around]
    return [
        *plain, *around,
        TinyCase("vision", "adaround", "static", "brecq"),
        TinyCase("llama", "lrq", "token, kv"),
        TinyCase("mixtral", "flexround"),
        TinyCase("bert, padded", "flexround", streams="cpu"),
        TinyCase("llama", "flexround", precision="bfloat16"),
    ]  # fmt: skip


def rows(context: Context) -> Iterator[Row]:
    """Yield how often the processor waits in an iteration, and where, for each case."""
    for case in cases(context.tiny):
        yield context.row(case.facts, 5, lambda case=case: _waits(case, context))


def _waits(case: TinyCase, context: Context) -> Row:
    """Return the synchronisations of an iteration without its reading of the loss, and where."""
    places = Places()
    with places.counted(context.cuda):
        quantized(case, context.device, 4 if context.tiny else 40)
    counts = dict(places.counts)
    readings = counts.pop(READING, 0)
    worst = sorted(counts.items(), key=lambda item: -item[1])
    lines = [f"{count / places.iterations:.2g} at {place}" for place, count in worst[:SHOWN]]
    if len(worst) > SHOWN:
        lines.append(f"{len(worst) - SHOWN} more places")
    return {
        "told by": "CUDA" if context.cuda else "operations, on a CPU",
        "iterations": places.iterations,
        "waits an iteration": sum(counts.values()) / places.iterations,
        "readings of the loss": readings, "where": "; ".join(lines),
    }  # fmt: skip
