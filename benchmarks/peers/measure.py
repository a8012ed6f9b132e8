"""Measurement of one step of a process: wall and processor seconds, and its peak memory.

Both sides use it, so it imports nothing besides Python's own.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
KEPT_PEAK = "5"  # what sets the peak back to what is held now: proc(5)


def measured(step: Callable[[], object]) -> dict[str, float]:
    """Return what step takes: wall, s; cpu, s; peak and grown, MiB.

    cpu counts all threads, and child processes that have ended. peak is the most that the process
    held in memory during the step, libraries and the network included; grown is how much more that
    is than at the step's begin.
    """
    _give_back()
    with suppress(OSError):
        CLEAR.write_text(KEPT_PEAK)
    held, cpu, wall = _memory("VmRSS"), _processor(), time.perf_counter()
    step()
    wall, cpu = time.perf_counter() - wall, _processor() - cpu
    peak = _memory("VmHWM")
    return {"wall": wall, "cpu": cpu, "peak": peak, "grown": peak - held}


def _give_back() -> None:
    """Have unused memory leave the process: a step that takes it up would grow by nothing."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _processor() -> float:
    """Return the processor's seconds of this process and of its children that have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


def _memory(name: str) -> float:
    """Return a line of the process's status in MiB; the peak of its whole life without one."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
