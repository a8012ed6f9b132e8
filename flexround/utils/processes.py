"""Processes: this machine's name among others, and who of its process table still lives."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import socket
import uuid
from pathlib import Path

# What `mark` returns: machine, process id, its start, and a random part.
MARK = re.compile(r"(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<started>\d*|\?)-[0-9a-f]{12}")
ALIVE = "?"  # the start of a process that lives and can't be looked at


def machine() -> str:
    """Return this host, boot and process namespace, between which process ids mean nothing."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(
                os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip()
            )
    return " ".join(parts)


def start_of(pid: int) -> str:
    """Return when process pid started, in ticks since boot; empty where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace")
    except OSError:
        # There is no /proc, it hides other users' processes, or too many files are open.
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return ALIVE
    # The name in brackets may hold anything; a zombie has died.
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def mark() -> str:
    """Return a new part of a file's name that tells which process writes the file."""
    pid = os.getpid()
    return f"{_digest(machine())}-{pid}-{start_of(pid)}-{uuid.uuid4().hex[:12]}"


def lives(text: str) -> bool | None:
    """Return whether the process of a mark is at work; None where this machine can't tell."""
    found = MARK.fullmatch(text)
    if found is None or found["machine"] != _digest(machine()):
        return None
    return start_of(int(found["pid"])) == found["started"]


@functools.cache
def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
