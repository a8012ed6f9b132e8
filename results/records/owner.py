"""Owner of a claim: a process, told apart from every other on every machine."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass, fields
from typing import Any

from pydantic_core import from_json

from flexround.utils.processes import ALIVE, machine, start_of

LARGEST_PID = 1 << 22  # of Linux; a larger number is no process

LATER = ("restarts", "step", "process")  # which claims of before have not
MAY_BE_NONE = ("job", "step", "process")


@dataclass(frozen=True)
class Owner:
    """The process that holds a claim.

    Attributes:
        machine: host, boot and process namespace, between which process ids mean nothing.
        started: the process's start in clock ticks since boot, which tells reused ids apart.
        job: the SLURM job that it is a part of, or None.
        restarts: how often SLURM had queued that job again; None in claims from before it was kept.
        step: the job's step that it is of, which srun begins on all its nodes at once, or None.
        process: which of the step's processes it is, or None.
    """

    host: str
    machine: str
    pid: int
    started: str
    job: str | None
    token: str
    restarts: int | None = None
    step: str | None = None
    process: str | None = None

    def __str__(self) -> str:
        if not self.token:
            return "a process whose claim can't be read"
        parts = ("SLURM job", self.job), ("step", self.step), ("process", self.process)
        job = ", ".join(f"{name} {part}" for name, part in parts if part is not None)
        job = "" if self.job is None else f" ({job})"
        return f"process {self.pid} on {self.host}{job}"

    @property
    def here(self) -> bool:
        """Whether it would be seen in this machine's process table."""
        return self.machine == machine()

    @property
    def in_table(self) -> bool:
        """Whether this machine's process table has it."""
        found = start_of(self.pid)
        return bool(found) and found in (self.started, ALIVE)


# Stands for whoever holds a claim that can't be read: only its beats tell whether it lives.
UNREADABLE = Owner("", "", 0, "", None, "")


def me() -> Owner:
    """Return this process as the owner of a new claim."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = os.environ.get("SLURM_JOB_ID")
    if array is not None:
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    count = os.environ.get("SLURM_RESTART_COUNT", "0")  # unset in a first attempt
    restarts = int(count) if job is not None and count.isdecimal() else None
    step, process = (os.environ.get(name) for name in ("SLURM_STEP_ID", "SLURM_PROCID"))
    pid, token = os.getpid(), uuid.uuid4().hex
    place = socket.gethostname(), machine(), pid, start_of(pid)
    return Owner(*place, job, token, restarts, step, process)


def owner_of(data: bytes) -> Owner:
    """Return the owner that a claim's file names.

    Raises:
        ValueError: when it names none.
    """
    held: Any = from_json(data)
    names = {f.name for f in fields(Owner)}
    if not isinstance(held, dict) or not names - {*LATER} <= held.keys() <= names:
        raise ValueError(f"it is no object with the fields {', '.join(sorted(names))}")
    pid = held["pid"]
    if not isinstance(pid, int) or not 0 < pid <= LARGEST_PID:
        raise ValueError("its pid is no process id")
    restarts = held.get("restarts")
    if restarts is not None and (type(restarts) is not int or restarts < 0):
        raise ValueError("its restarts are no number")
    rest = {name: value for name, value in held.items() if name not in ("pid", "restarts")}
    texts = [v for k, v in rest.items() if not (k in MAY_BE_NONE and v is None)]
    if not all(isinstance(v, str) and v.isprintable() for v in texts) or not held["token"]:
        raise ValueError("its fields are no plain text")
    return Owner(**held)
