"""Passes over a weight: piece by piece in the processor's cache, or compiled into one kernel.

A method's formula is a few functions that take parts of tensors and write into parts of tensors.
As they are, they run on parts that fit the cache, which on a CPU is worth half of the time. Under
`compiling` each runs once over the whole, compiled by torch.compile.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Elements worked on at a time, so that the many passes over them stay in the processor's cache.
CHUNK = 1 << 18
WHOLE = slice(None)

HOST = ("clang", "gcc")  # C compilers as triton looks for them where CC is not set

# Not a context variable: autograd runs backward passes on a GPU in threads of its own.
_compiling = False


@contextmanager
def compiling(on: bool) -> Iterator[None]:
    """Compile the fused functions that are called inside, where on."""
    global _compiling
    before, _compiling = _compiling, on
    try:
        yield
    finally:
        _compiling = before


def compiling_now() -> bool:
    """Return whether fused functions are compiled."""
    return _compiling


def check_compiler(device: torch.device) -> None:
    """Check that torch.compile has what it needs for device.

    Raises:
        ValueError: where there is no C++ compiler for a CPU, or no Triton for a GPU, which builds
            what starts its kernels by a C compiler.
    """
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ValueError("compile=true needs triton on a GPU; install it, or leave compile out")
        if not any(map(shutil.which, [os.environ["CC"]] if "CC" in os.environ else HOST)):
            raise ValueError(
                f"compile=true needs a C compiler beside triton, and there is none of "
                f"{', '.join(HOST)}; install one, set CC, or leave compile out"
            )
        return
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"compile=true needs a C++ compiler, and {compiler} is none here; install g++, set "
            "CXX, or leave compile out"
        )


def fused(function: Callable[..., None]) -> Callable[..., None]:
    """Return function, which is compiled while `compiling` is on; its shapes may change."""
    compiled: Any = None

    @functools.wraps(function)
    def call(*args: Any) -> None:
        nonlocal compiled
        if not _compiling:
            function(*args)
            return
        if compiled is None:
            compiled = torch.compile(function, dynamic=True)
        compiled(*args)

    return call


def row_chunks(rows: int, elements: int) -> Iterator[slice]:
    """Yield slices of a [rows, elements] tensor's rows that hold about CHUNK elements each."""
    step = max(1, CHUNK // elements)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def at_once(device: torch.device) -> bool:
    """Return whether a tensor is worked on as a whole: on a GPU each operation is a launch."""
    return _compiling or device.type != "cpu"


def in_one(values: Tensor) -> bool:
    """Return whether values are worked on as a whole."""
    return values.numel() <= CHUNK or at_once(values.device)


def part_of(values: Tensor, rows: slice, columns: slice = WHOLE) -> Tensor:
    """Return rows and columns of values; no view is made of the whole, which costs time."""
    if columns is WHOLE:
        return values if rows is WHOLE else values[rows]
    return values[rows, columns]


def parts(values: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield (groups, elements) of values [groups, elements] to work on one after the other."""
    if in_one(values):
        yield WHOLE, WHOLE
    elif len(values) == 1:
        for columns in row_chunks(values.shape[1], 1):
            yield WHOLE, columns
    else:
        for rows in row_chunks(*values.shape):
            yield rows, WHOLE
