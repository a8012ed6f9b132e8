"""Shortage of memory: where it ran out, how much was free, what helps."""

from __future__ import annotations

import ctypes
import errno
import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

STATUS, MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")
PEAK = Path("/proc/self/clear_refs")  # man 5 proc: 5 resets the peak resident set
ADVICE = (
    "lower recon.batch_size, or give stream_gib=1 (streams beyond it lie on disk), "
    "stream_dtype=bfloat16, offload=true (a language model one block at a time)"
)
# A GPU has one block at a time anyway, and nothing is spilled from it.
ON_GPU = (
    "lower recon.batch_size, or give stream_device=cpu (streams in the CPU's memory), "
    "stream_dtype=bfloat16, a GPU with more memory"
)
# What has no exception of its own: torch's allocator on the CPU, and for page-locked memory, and
# the libraries on a GPU.
SHORT = ("allocate memory", "not enough m", "out of memory", "ALLOC_FAILED")


def is_shortage(error: BaseException) -> bool:
    """Return whether error says that there is no memory, on the GPU or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SHORT)


@contextmanager
def explained(where: str, device: torch.device, advice: str | None = None) -> Iterator[None]:
    """Turn a shortage of memory in the context into one line that says where.

    advice is what helps there, where that is not what helps a block at work on device.

    Raises:
        ValueError: names where, how much was free, and which options help.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_shortage(error):
            raise
        raise ValueError(shortage(where, device, advice)) from error


def free_on(device: torch.device) -> int | None:
    """Return the bytes that are free on a GPU; None for another device."""
    if device.type != "cuda":
        return None
    # What torch has taken of the card and keeps for later tensors is free as well.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def shortage(where: str, device: torch.device, advice: str | None = None) -> str:
    """Return the line about a shortage of memory at where."""
    free = free_on(device)
    if free is None:
        free = free_bytes()
    left = "" if free is None else f" ({free / 2**30:.2f} GiB were free on {device.type})"
    advice = advice or (ON_GPU if device.type == "cuda" else ADVICE)
    return f"{where}: out of memory{left}; {advice}"


def free_bytes() -> int | None:
    """Return what this process may still take: of the machine's memory and of its own limits.

    None where the system does not tell.
    """
    try:
        free = [proc_bytes(MEMINFO, "MemAvailable")]
        used = {"VmData": resource.RLIMIT_DATA, "VmSize": resource.RLIMIT_AS}
        for name, which in used.items():
            limit = resource.getrlimit(which)[0]
            if limit != resource.RLIM_INFINITY:
                free.append(max(0, limit - proc_bytes(STATUS, name)))
    except (OSError, KeyError):
        return None
    return min(free)


def forget_dead() -> None:
    """Free what a run that is done has left on a GPU: networks and hooks hold on to each other.

    Until Python looks for such rings they stay there beside the next run's. To look takes a second,
    which a CPU's memory is not worth.
    """
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()  # for others on the card, and for torch in larger pieces


def give_back() -> None:
    """Have freed memory go back to the system: glibc keeps tensors below 32 MiB for itself."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def proc_bytes(path: Path, name: str) -> int:
    """Return the entry called name of a file of /proc, STATUS or MEMINFO, in bytes.

    Raises:
        KeyError, OSError: where the system has no such entry or file.
    """
    entries = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return int(entries[name].split()[0]) * 1024


def forget_peak() -> None:
    """Let the process's peak of resident memory begin here, where the system can: Linux alone."""
    with suppress(OSError):
        PEAK.write_text("5")
