"""Owner of a claim: a process, told apart from every other on every machine."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic_core import from_json

ALIVE = "?"  # the start of a process that lives and can't be looked at
LARGEST_PID = 1 << 22  # of Linux; a larger number is no process


@dataclass(frozen=True)
class Owner:
    """The process that holds a claim.

    Attributes:
        machine: host, boot and process namespace, between which process ids mean nothing.
        started: the process's start in clock ticks since boot, which tells reused ids apart.
        job: the SLURM job that it is a part of, or None.
    """

    host: str
    machine: str
    pid: int
    started: str
    job: str | None
    token: str

    def __str__(self) -> str:
        if not self.token:
            return "a process whose claim can't be read"
        job = "" if self.job is None else f" (SLURM job {self.job})"
        return f"process {self.pid} on {self.host}{job}"

    @property
    def here(self) -> bool:
        """Whether it would be seen in this machine's process table."""
        return self.machine == _machine()

    @property
    def in_table(self) -> bool:
        """Whether this machine's process table has it."""
        found = _start_of(self.pid)
        return bool(found) and found in (self.started, ALIVE)


# Stands for whoever holds a claim that can't be read: only its beats tell whether it lives.
UNREADABLE = Owner("", "", 0, "", None, "")


def me() -> Owner:
    """Return this process as the owner of a new claim."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = os.environ.get("SLURM_JOB_ID")
    if array is not None:
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    pid = os.getpid()
    return Owner(socket.gethostname(), _machine(), pid, _start_of(pid), job, uuid.uuid4().hex)


def owner_of(data: bytes) -> Owner:
    """Return the owner that a claim's file names.

    Raises:
        ValueError: when it names none.
    """
    held: Any = from_json(data)
    names = {f.name for f in fields(Owner)}
    if not isinstance(held, dict) or held.keys() != names:
        raise ValueError(f"it is no object with the fields {', '.join(sorted(names))}")
    pid = held["pid"]
    if not isinstance(pid, int) or not 0 < pid <= LARGEST_PID:
        raise ValueError("its pid is no process id")
    texts = [v for k, v in held.items() if k != "pid" and not (k == "job" and v is None)]
    if not all(isinstance(v, str) and v.isprintable() for v in texts) or not held["token"]:
        raise ValueError("its fields are no plain text")
    return Owner(**held)


def _machine() -> str:
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(
                os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip()
            )
    return " ".join(parts)


def _start_of(pid: int) -> str:
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
