"""Claims: who is working on a run or a cache entry, safe on a shared file system.

A claim is a file that appears whole by a hard link (atomic on NFS too; where there are no links, by
a rename that one process at a time makes) and whose modification time its owner renews. On the
owner's own machine the process table says whether it lives; from elsewhere the beats do, and they
are watched rather than compared with a clock, which may jump. A claim that can't be read is another
process's as long as it beats, and is never removed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import threading
import time
from dataclasses import asdict
from pathlib import Path

from flexround.utils.atomic_files import beside, sweep
from flexround.utils.exclusive_files import place_new, set_aside, take_away
from flexround.utils.file_errors import StorageError, read_bytes
from flexround.utils.processes import mark
from results.records.owner import UNREADABLE, Owner, me, owner_of

log = logging.getLogger(__name__)

__all__ = ["Claim", "Owner", "me"]

BEAT = 10.0  # seconds between two beats
# Beats that must be missing before a claim is watched at all, and then while it is watched.
MISSED, WATCHED = 6, 2.5
TRIES = 3  # at a folder that is deleted meanwhile


class Claim:
    """One claim, free or held by some process."""

    def __init__(self, path: str | Path, beat: float = BEAT) -> None:
        self.path, self._beat = Path(path), beat
        self._mine: Owner | None = None
        self._ended = threading.Event()

    def take(self) -> Owner | None:
        """Take the claim and return None, or return the living owner that has it.

        The claim of a dead owner is taken over; one that is damaged is set aside.

        Raises:
            OSError: when the folder can't be written.
            StorageError: when the claim can't be read and its owner is silent.
        """
        own = self._mine = me()  # from here on `release` knows it, wherever a signal ends this
        for left in reversed(range(TRIES)):
            try:
                held = self._take(own)
                break
            except FileNotFoundError:  # the folder was deleted between two lines
                if not left:
                    raise
        if held is not None:
            self._mine = None
            return held
        self._ended.clear()
        threading.Thread(target=self._beats, args=(own,), daemon=True).start()
        return None

    def _take(self, own: Owner) -> Owner | None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        sweep(self.path)
        part = beside(self.path)
        try:
            part.write_text(json.dumps(asdict(own)))
            while not place_new(part, self.path):
                data, held = self._look()
                if held == own:  # a file server has answered a link that it made with an error
                    break
                if held is not None and not _is_earlier(held, own) and self._lives(held):
                    return held
                self._remove(data, held)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        return None

    def release(self) -> None:
        """Give the claim back, unless another has taken it over."""
        self._ended.set()
        if self._mine is not None and self.owner() == self._mine:
            try:
                self.path.unlink(missing_ok=True)
            except OSError as error:  # whoever comes next finds that its owner has ended
                log.warning("claim %s is not removed: %s", self.path, error.strerror)
        self._mine = None

    def owner(self) -> Owner | None:
        """Return who holds it, None where nobody does or the file is damaged.

        Where it can't be read, that is an owner without a name.
        """
        return self._look()[1]

    def _look(self) -> tuple[bytes, Owner | None]:
        """Return (what the file holds, its owner) as `owner` does."""
        try:
            data = read_bytes(self.path)
        except FileNotFoundError:
            return b"", None
        except OSError as error:
            log.warning("claim %s can't be read: %s", self.path, error.strerror)
            return b"", UNREADABLE
        try:
            return data, owner_of(data)
        except ValueError as error:
            log.warning("claim %s is damaged (%s)", self.path, error)
            return data, None

    def seems_alive(self) -> bool:
        """Return whether its owner is at work, as far as one look can tell."""
        held = self.owner()
        if held is None:
            return False
        return held.in_table if held.here else self._age() < MISSED * self._beat

    def is_of_dead(self) -> bool:
        """Return whether its owner was a process of this machine that is no more."""
        held = self.owner()
        return held is not None and held.here and not held.in_table

    def free(self) -> None:
        """Give back the claim of a dead owner; leave that of a living one.

        Raises:
            OSError: when the folder can't be written.
        """
        if self.take() is None:
            self.release()

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
        """Return seconds since the last beat by the file system's own clock.

        Where the folder can't be written, by this machine's.
        """
        beat = (self._last_beat() or 0) / 1e9
        probe = self.path.with_name(f".now.{mark()}")
        try:
            probe.touch()
            return probe.stat().st_mtime_ns / 1e9 - beat
        except OSError:
            return time.time() - beat
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    def _remove(self, data: bytes, dead: Owner | None) -> None:
        """Remove the claim that holds data of dead, and no other that has come since.

        Raises:
            StorageError: when it can't be read, so that nothing says whose it is.
        """
        if dead is UNREADABLE:
            raise StorageError(
                f"claim {self.path} can't be read, and whoever holds it is silent; have its owner "
                "delete it, or change its rights",
                errno.EACCES,
            )
        if dead is not None:
            take_away(self.path, data, None)
        elif self.path.exists() and set_aside(self.path, data) is None:
            # Another process did; or nobody can, and then no claim of ours comes here either.
            if not os.access(self.path.parent, os.W_OK):
                raise StorageError(f"claim {self.path} is damaged, and can't be removed from there")
            time.sleep(0.01)

    def _beats(self, own: Owner) -> None:
        told = False
        while not self._ended.wait(self._beat):
            data, held = self._look()
            if self._ended.is_set() or (held is None and not data):
                if not told and not self._ended.is_set():
                    told = True
                    log.warning("claim %s is gone: its folder was deleted or moved", self.path)
                continue
            if held not in (own, UNREADABLE):
                log.warning("claim %s was taken over", self.path)
                return
            with contextlib.suppress(OSError):
                os.utime(self.path)


def _is_earlier(held: Owner, own: Owner) -> bool:
    """Return whether held was an earlier attempt at own's SLURM job, which has ended by then.

    In one attempt many processes may be at work, on many nodes: srun begins one for each task.
    """
    if own.job is None or held.job != own.job or (held.here and held.in_table):
        return False
    before, now = held.restarts, own.restarts
    return before is not None and now is not None and before < now
