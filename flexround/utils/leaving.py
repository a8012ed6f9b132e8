"""Leaving: how a command ends when a signal tells it to, by Ctrl-C, SIGTERM or SIGHUP.

The signal raises `Left` where the command is at work, so that all it holds is given back on the way
out; the command's door says so in one line and ends with status 128 + the signal's number. Where an
exception would be lost (inside an import, in a call that does not come back, where it is swallowed)
the process ends at once, and only what was told to `undoing` is given back.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import CodeType, FrameType, TracebackType
from typing import Any

WORDS = {
    signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM",
    signal.SIGHUP: "ended by SIGHUP",
}  # fmt: skip
# Seconds: until a process that has not ended by itself is ended, and from which a second signal
# means what it says rather than being the same key pressed twice.
GRACE, INSISTS = 10.0, 1.0
NUDGE = 0.05  # seconds that the main thread has to take a signal up before it is told again


class Left(KeyboardInterrupt):
    """A signal has told the process to end. Every library lets a KeyboardInterrupt through."""


class _State:
    """What this process knows of its end."""

    def __init__(self) -> None:
        self.number: int | None = None  # the signal that came
        self.since = 0.0
        self.way_on = ""  # what is true once it has ended
        self.listens = self.quiet = False
        self.first: list[Callable[[], None]] = []
        self.undo: list[Callable[[], None]] = []
        self.doors = 0  # opened and closed: a signal is that of the door that was open
        self.heard: dict[int, float] = {}  # when the main thread has last heard of each signal
        self.wakes: int | None = None  # the file that the system writes signals to


_state = _State()


def requested() -> bool:
    """Return whether a signal has told this process to end."""
    return _state.number is not None


@contextmanager
def faults() -> Iterator[None]:
    """Let exceptions through; those that a signal has led to, which libraries made theirs, as Left.

    Raises:
        Left: in place of any exception once a signal has come.
    """
    try:
        yield
    except Exception as error:
        if _state.number is not None:
            raise Left from error
        raise


def listen(quiet: bool = False) -> None:
    """End at once on a signal, as long as nothing is held that is to be given back.

    A process that is quiet says nothing: another does. What is ignored (nohup) stays so.
    """
    _state.listens, _state.quiet = True, quiet
    sys.excepthook = _say_what_no_door_did
    for number in WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end_at_once)


@contextmanager
def door(way_on: str = "") -> Iterator[None]:
    """Hold what a command does; end the process in one line when a signal tells it to.

    way_on says what is true then, such as how to go on.

    Raises:
        SystemExit: with 128 + the signal's number.
    """
    _state.number, _state.way_on = None, way_on
    _state.doors += 1
    _state.first.clear()
    _state.undo.clear()
    before: dict[int, Any] = {}
    try:
        _hold(before)  # inside: the first handler that it sets may be called at once
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and _state.number is None:
            _state.number = signal.SIGINT
        if _state.number is None:
            raise
    finally:
        if _state.number is None:
            _state.doors += 1
            _release(before)
    if _state.number is None:
        return
    _give_back()
    if _state.listens:
        logging.disable()  # what libraries say at their own end
        for number in WORDS:  # the key pressed twice; `_watch` sees to it that there is an end
            signal.signal(number, signal.SIG_IGN)
    else:  # a caller that goes on
        _state.doors += 1
        _release(before)
    if not _state.quiet:
        print(_line(), file=sys.stderr)
    number = _state.number
    if not _state.listens:
        _state.number = None
    raise SystemExit(128 + number)


@contextmanager
def told(way_on: str) -> Iterator[None]:
    """Say way_on instead of the door's own words where the process ends in here."""
    before, _state.way_on = _state.way_on, way_on
    try:
        yield
    finally:
        if _state.number is None:
            _state.way_on = before


@contextmanager
def undoing(undo: Callable[[], None]) -> Iterator[None]:
    """Have undo called also where the process ends without coming to the end of this context.

    It may be called twice.
    """
    _state.undo.append(undo)
    try:
        yield
    finally:
        if _state.number is None:
            _state.undo.remove(undo)


@contextmanager
def first(act: Callable[[], None]) -> Iterator[None]:
    """Have act called by a signal before it ends anything here."""
    _state.first.append(act)
    try:
        yield
    finally:
        _state.first.remove(act)


def _hold(before: dict[int, Any]) -> None:
    """Make signals raise; put into before what they did."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in WORDS:
        handler = signal.getsignal(number)
        if handler is not signal.SIG_IGN and handler is not None:
            before[int(number)] = handler
            signal.signal(number, _raise)
    if _state.wakes is None:
        read, _state.wakes = os.pipe()
        os.set_blocking(_state.wakes, False)
        threading.Thread(target=_watch, args=(read,), daemon=True).start()
    signal.set_wakeup_fd(_state.wakes, warn_on_full_buffer=False)


def _release(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
    if before:
        signal.set_wakeup_fd(-1)


def _raise(number: int, frame: FrameType | None) -> None:
    if _is_lost_in(frame):
        return  # not heard of: `_watch` tells it again
    _state.heard[number] = time.monotonic()
    if _state.number is not None:
        if time.monotonic() - _state.since > INSISTS:
            _end()
        return
    _state.number, _state.since = number, time.monotonic()
    for act in _state.first:
        act()
    if _imports(frame):
        _end()
    raise Left


def _is_lost_in(frame: FrameType | None) -> bool:
    """Return whether frame is inside a `__del__`, whose exceptions Python prints and drops."""
    return any(code.co_name == "__del__" for code in _codes(frame))


def _imports(frame: FrameType | None) -> bool:
    """Return whether frame is inside an import, where modules in C lose exceptions."""
    return any(code.co_filename.startswith("<frozen importlib") for code in _codes(frame))


def _codes(frame: FrameType | None) -> Iterator[CodeType]:
    """Yield the code of frame and of all that have called it."""
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def _say_what_no_door_did(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """End in one line where a signal has come between a door and what it holds."""
    if issubclass(kind, Left):
        _end()
    sys.__excepthook__(kind, error, trace)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    _state.number = number
    _end()


def _watch(read: int) -> None:
    """End the process where the main thread has not done so in time."""
    while True:
        number = os.read(read, 1)[0]
        if number not in WORDS:
            continue
        came, door = time.monotonic(), _state.doors
        for pause in (NUDGE, 10 * NUDGE):
            time.sleep(pause)
            if _state.doors == door and _is_lost(number, came):
                # Of two signals at once the system may hand the first to another thread as well;
                # the main one then goes on sleeping.
                signal.pthread_kill(threading.main_thread().ident or 0, number)
        time.sleep(max(0.0, came + GRACE - time.monotonic()))
        if _state.doors == door and (_state.number is not None or _is_lost(number, came)):
            _state.number = _state.number or number
            _end()


def _is_lost(number: int, came: float) -> bool:
    """Return whether the main thread is to raise for a signal and has not heard of it."""
    # This thread may come to it long after the main one.
    heard = _state.heard.get(number, -math.inf) > came - INSISTS
    return signal.getsignal(number) is _raise and not heard


def _end() -> None:
    _give_back()
    with suppress(Exception):
        sys.stdout.flush()
    if not _state.quiet:
        shown = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""  # a bar's line, a cursor hidden by it
        with suppress(OSError):
            os.write(2, f"{shown}{_line()}\n".encode())
    os._exit(128 + (_state.number or 0))


def _give_back() -> None:
    for undo in reversed(_state.undo):
        with suppress(Exception):
            undo()


def _line() -> str:
    return "; ".join(filter(None, (WORDS[signal.Signals(_state.number or 0)], _state.way_on)))


def _forget() -> None:
    """Leave a forked child what it would have without us: it holds nothing."""
    global _state
    if _state.wakes is not None:
        signal.set_wakeup_fd(-1)
    for number in WORDS:
        if signal.getsignal(number) in (_raise, _end_at_once):
            signal.signal(number, signal.SIG_DFL)
    _state = _State()


os.register_at_fork(after_in_child=_forget)
