"""Processes of joblib's pool: how they end when the launcher is told to, or has died.

The launcher alone hears of Ctrl-C and ends its workers by SIGTERM, on which they give back what
they hold. joblib would kill all of them as soon as one is gone, so that each says that it is done
and waits for the others.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from flexround.utils import leaving
from flexround.utils.processes import start_of

# Seconds that workers have to give back what they hold, then to wait for one another.
PATIENCE, LINGER = 5.0, 3.0
LOOK = 0.02
FOLDER = ".workers"  # of a sweep, for what its processes say


@dataclass(frozen=True)
class Site:
    """Where workers are at work: the launcher's process id, and the folder to say so in."""

    launcher: int
    folder: str


class Workers:
    """The processes of a pool, ended before anything else when a signal ends the launcher."""

    def __init__(self, pool: Any, sweep: str) -> None:
        self._pool, self._held = pool, ExitStack()
        self._folder = Path(sweep, FOLDER)
        self.site = Site(os.getpid(), str(self._folder.absolute()))

    def __enter__(self) -> Workers:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._clear()
        self._held.enter_context(leaving.first(self.end))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._held.close()
        self._clear()
        with suppress(OSError):  # a process has said something meanwhile
            self._folder.rmdir()

    def _clear(self) -> None:
        """Remove what is said there of processes."""
        with suppress(OSError):  # gone, or a server's
            for path in self._folder.iterdir():
                path.unlink(missing_ok=True)

    def end(self) -> None:
        """End them all, by SIGKILL those that do not listen."""
        executor = getattr(self._pool._backend, "_workers", None)
        ids = list(getattr(executor, "_processes", None) or ())
        _send(ids, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not all(map(self._is_done, ids)):
            time.sleep(LOOK)
        _send(ids, signal.SIGKILL)

    def _is_done(self, process: int) -> bool:
        return (self._folder / str(process)).exists() or not start_of(process)


@contextmanager
def at_work(site: Site) -> Iterator[None]:
    """Hold a job in a worker; on a signal, or the launcher's death, this process ends."""
    me = os.getpid()
    if me == site.launcher:  # one at a time needs no other process
        yield
        return
    _prepare(site.launcher)
    try:
        with leaving.door(), leaving.undoing(lambda: _say_done(site)):
            yield
    except SystemExit as end:
        if leaving.requested():
            os._exit(int(end.code or 0))  # the pool would take it for the job's own
        raise


@functools.cache  # at a process's first job
def _prepare(launcher: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leaving.listen(quiet=True)
    _follow(launcher)


def _follow(parent: int) -> None:
    """End this process by SIGTERM once its parent has died, however that was."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _say_done(site: Site) -> None:
    with suppress(OSError):
        Path(site.folder, str(os.getpid())).touch()
    deadline = time.monotonic() + LINGER
    while time.monotonic() < deadline and os.getppid() == site.launcher:
        time.sleep(LOOK)


@contextmanager
def hidden_from_interrupts() -> Iterator[None]:
    """Start processes and threads that never hear of Ctrl-C, not even before their first line."""
    from joblib.externals.loky.backend import resource_tracker

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        # It cleans up after the pool; in starting it would undo what is blocked below.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_SETMASK, before | {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(ids: list[int], number: int) -> None:
    for process in ids:
        with suppress(ProcessLookupError):
            os.kill(process, number)
