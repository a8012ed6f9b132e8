"""Ending of a process that a signal tells to end: what the signal's handlers do, and when.

A handler raises `Left` where the main thread is at work. Where that would be lost it ends the
process itself, and so does a thread that watches over it, once `GRACE` has passed.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
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


class State:
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


state = State()


def hold(before: dict[int, Any]) -> None:
    """Make signals raise; put into before what they did."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in WORDS:
        handler = signal.getsignal(number)
        if handler is not signal.SIG_IGN and handler is not None:
            before[int(number)] = handler
            signal.signal(number, _raise)
    if state.wakes is None:
        read, state.wakes = os.pipe()
        os.set_blocking(state.wakes, False)
        threading.Thread(target=_watch, args=(read,), daemon=True).start()
    signal.set_wakeup_fd(state.wakes, warn_on_full_buffer=False)


def release(before: dict[int, Any]) -> None:
    """Make signals do again what before has of them."""
    for number, handler in before.items():
        signal.signal(number, handler)
    if before:
        signal.set_wakeup_fd(-1)


def _raise(number: int, frame: FrameType | None) -> None:
    if _is_lost_in(frame):
        return  # not heard of: `_watch` tells it again
    state.heard[number] = time.monotonic()
    if state.number is not None:
        if time.monotonic() - state.since > INSISTS:
            _end()
        return
    state.number, state.since = number, time.monotonic()
    for act in state.first:
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


def say_what_no_door_did(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """End in one line where a signal has come between a door and what it holds."""
    if issubclass(kind, Left):
        _end()
    sys.__excepthook__(kind, error, trace)


def end_at_once(number: int, frame: FrameType | None) -> None:
    """End the process, as a handler of what comes before a door."""
    state.number = number
    _end()


def _watch(read: int) -> None:
    """End the process where the main thread has not done so in time."""
    while True:
        number = os.read(read, 1)[0]
        if number not in WORDS:
            continue
        came, door = time.monotonic(), state.doors
        for pause in (NUDGE, 10 * NUDGE):
            time.sleep(pause)
            if state.doors == door and _is_lost(number, came):
                # Of two signals at once the system may hand the first to another thread as well;
                # the main one then goes on sleeping.
                signal.pthread_kill(threading.main_thread().ident or 0, number)
        time.sleep(max(0.0, came + GRACE - time.monotonic()))
        if state.doors == door and (state.number is not None or _is_lost(number, came)):
            state.number = state.number or number
            _end()


def _is_lost(number: int, came: float) -> bool:
    """Return whether the main thread is to raise for a signal and has not heard of it."""
    # This thread may come to it long after the main one.
    heard = state.heard.get(number, -math.inf) > came - INSISTS
    return signal.getsignal(number) is _raise and not heard


def _end() -> None:
    give_back()
    with suppress(Exception):
        sys.stdout.flush()
    if not state.quiet:
        shown = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""  # a bar's line, a cursor hidden by it
        with suppress(OSError):
            os.write(2, f"{shown}{line()}\n".encode())
    os._exit(128 + (state.number or 0))


def give_back() -> None:
    """Call what was told to `undoing`, the last first."""
    for undo in reversed(state.undo):
        with suppress(Exception):
            undo()


def line() -> str:
    """Return what is said of the end."""
    return "; ".join(filter(None, (WORDS[signal.Signals(state.number or 0)], state.way_on)))


def _forget() -> None:
    """Leave a forked child what it would have without us: it holds nothing."""
    if state.wakes is not None:
        signal.set_wakeup_fd(-1)
    for number in WORDS:
        if signal.getsignal(number) in (_raise, end_at_once):
            signal.signal(number, signal.SIG_DFL)
    vars(state).update(vars(State()))


os.register_at_fork(after_in_child=_forget)
