"""Claims: who is working on a run or a cache entry, safe on a shared file system.

A claim is a file that appears whole by a hard link (atomic on NFS too) and whose modification time
its owner renews. On the owner's own machine the process table says whether it lives; from elsewhere
the beats do, and they are watched rather than compared with a clock, which may jump.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)

BEAT = 10.0  # seconds between two beats
# Beats that must be missing before a claim is watched at all, and then while it is watched.
MISSED, WATCHED = 6, 2.5


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
        job = "" if self.job is None else f" (SLURM job {self.job})"
        return f"process {self.pid} on {self.host}{job}"

    @property
    def here(self) -> bool:
        """Whether it would be seen in this machine's process table."""
        return self.machine == _machine()

    @property
    def in_table(self) -> bool:
        """Whether this machine's process table has it."""
        return _start_of(self.pid) == self.started


def me() -> Owner:
    """Return this process as the owner of a new claim."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = os.environ.get("SLURM_JOB_ID")
    if array is not None:
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    pid = os.getpid()
    return Owner(socket.gethostname(), _machine(), pid, _start_of(pid), job, uuid.uuid4().hex)


class Claim:
    """One claim, free or held by some process."""

    def __init__(self, path: str | Path, beat: float = BEAT) -> None:
        self.path, self._beat = Path(path), beat
        self._mine: Owner | None = None
        self._ended = threading.Event()

    def take(self) -> Owner | None:
        """Take the claim and return None, or return the living owner that has it.

        The claim of a dead owner is taken over; one that can't be read is set aside.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        own = me()
        part = self.path.with_name(f".{self.path.name}.{own.token}.part")
        try:
            part.write_text(json.dumps(asdict(own)))
            while True:
                with contextlib.suppress(FileExistsError):
                    os.link(part, self.path)
                    break
                held = self.owner()
                if held is not None and not _same_job(held, own) and self._lives(held):
                    return held
                self._set_aside(held)
        finally:
            part.unlink(missing_ok=True)
        self._mine = own
        self._ended.clear()
        threading.Thread(target=self._beats, args=(own,), daemon=True).start()
        return None

    def release(self) -> None:
        """Give the claim back, unless another has taken it over."""
        self._ended.set()
        if self._mine is not None and self.owner() == self._mine:
            self.path.unlink(missing_ok=True)
        self._mine = None

    def owner(self) -> Owner | None:
        """Return who holds it, None where nobody does or the file can't be read."""
        try:
            return Owner(**json.loads(self.path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning("claim %s is damaged (%s)", self.path, error)
            return None

    def seems_alive(self) -> bool:
        """Return whether its owner is at work, as far as one look can tell."""
        held = self.owner()
        if held is None:
            return False
        return held.in_table if held.here else self._age() < MISSED * self._beat

    def _lives(self, held: Owner) -> bool:
        if held.here:
            return held.in_table
        beat = self._last_beat()
        if self._age() < MISSED * self._beat:
            return beat is not None
        # It looks old; but a clock may have jumped, so that only silence counts.
        log.info("%s has not been heard of; listening for %s", held, self.path.name)
        time.sleep(WATCHED * self._beat)
        return self._last_beat() != beat

    def _last_beat(self) -> int | None:
        try:
            return self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _age(self) -> float:
        """Return seconds since the last beat by the file system's own clock."""
        probe = self.path.with_name(f".now.{uuid.uuid4().hex}")
        probe.touch()
        try:
            return (probe.stat().st_mtime_ns - (self._last_beat() or 0)) / 1e9
        finally:
            probe.unlink()

    def _set_aside(self, dead: Owner | None) -> None:
        """Remove the claim of dead, and no other that has come since."""
        aside = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.dead")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        found = Claim(aside).owner()
        if found is not None and found != dead:
            with contextlib.suppress(FileExistsError):
                os.link(aside, self.path)
        elif found is None:
            aside.rename(self.path.with_suffix(".damaged"))
            return
        aside.unlink()

    def _beats(self, own: Owner) -> None:
        while not self._ended.wait(self._beat):
            if self.owner() != own:
                log.warning("claim %s was taken over", self.path)
                return
            with contextlib.suppress(OSError):
                os.utime(self.path)


def _same_job(held: Owner, own: Owner) -> bool:
    """Return whether held was an attempt at own's SLURM job, which runs in one place at a time."""
    return own.job is not None and held.job == own.job and not (held.here and held.in_table)


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
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        # Without /proc the id alone must do.
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return "?" if not Path("/proc/self").exists() else ""
    # The name in brackets may hold anything; a zombie has died.
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
