"""Threads of a run: one number for all that a folder of results gets from one kind of processor.

The number of threads decides the last bits of a sum, and a method that rounds makes more of them. A
sweep that began under one launcher and goes on under another therefore keeps the number that its
folder's first run had.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from experiment.values import MOST_THREADS
from flexround.utils.tensor_float32 import tensor_float32
from flexround.utils.threads import computing_on

log = logging.getLogger("run")

KEPT = ".threads"  # in the folder of results: a line "NUMBER PROCESSOR" for each kind


@contextmanager
def running_on(threads: int) -> Iterator[None]:
    """Let torch compute on this many threads in the context, and in float32 what is float32."""
    with computing_on(threads), tensor_float32(False):
        yield


def number_for(folder: Path, asked: int | None, processor: str) -> int:
    """Return asked, or else what runs of folder on such a processor have had, or else torch's own.

    torch's own, one for each core unless OMP_NUM_THREADS or a launcher says otherwise, is kept.
    """
    if asked is not None:
        return asked
    own = torch.get_num_threads()
    path = folder / KEPT
    if _first(path, processor) is None:
        # Whoever comes second reads the line of whoever came first; without it, own will do.
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(file, f"{own} {processor}\n".encode())
            finally:
                os.close(file)
    kept = _first(path, processor) or own
    if kept != own:
        log.info(
            "threads=%d, as in earlier runs of %s; this process was given %d (threads=%d takes "
            "them)", kept, folder, own, own,
        )  # fmt: skip
    return kept


def _first(path: Path, processor: str) -> int | None:
    """Return the first number that the file at path has for a processor."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        number, _, name = line.partition(" ")
        if name == processor and number.isdecimal() and 1 <= int(number) <= MOST_THREADS:
            return int(number)
    return None
