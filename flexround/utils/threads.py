"""Threads of torch on the CPU, which decide the last bits of a sum."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def computing_on(threads: int | None) -> Iterator[None]:
    """Let torch compute on this many threads in the context; None leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
