"""Leaving: how a command ends when a signal tells it to, by Ctrl-C, SIGTERM or SIGHUP.

The signal raises `Left` where the command is at work, so that all it holds is given back on the way
out; the command's door says so in one line and ends with status 128 + the signal's number. Where an
exception would be lost (inside an import, in a call that does not come back, where it is swallowed)
the process ends at once, and only what was told to `undoing` is given back.

Where nobody reads what the command prints any more, as behind `| head`, it ends as SIGPIPE would
have it: quietly, with that signal's status.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from flexround.utils.ending import (
    WORDS,
    Left,
    end_at_once,
    give_back,
    hold,
    line,
    release,
    say_what_no_door_did,
    state,
)

__all__ = [
    "WORDS", "Left", "door", "faults", "first", "listen", "requested", "told", "undoing",
]  # fmt: skip


def requested() -> bool:
    """Return whether a signal has told this process to end."""
    return state.number is not None


@contextmanager
def faults() -> Iterator[None]:
    """Let exceptions through; those that a signal has led to, which libraries made theirs, as Left.

    Raises:
        Left: in place of any exception once a signal has come.
    """
    try:
        yield
    except Exception as error:
        if state.number is not None:
            raise Left from error
        raise


def listen(quiet: bool = False) -> None:
    """End at once on a signal, as long as nothing is held that is to be given back.

    A process that is quiet says nothing: another does. What is ignored (nohup) stays so.
    """
    state.listens, state.quiet = True, quiet
    sys.excepthook = say_what_no_door_did
    for number in WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end_at_once)


@contextmanager
def door(way_on: str = "") -> Iterator[None]:
    """Hold what a command does; end the process in one line when a signal tells it to.

    way_on says what is true then, such as how to go on.

    Raises:
        SystemExit: with 128 + the signal's number; as `_printing` does.
    """
    state.number, state.way_on = None, way_on
    state.doors += 1
    state.first.clear()
    state.undo.clear()
    before: dict[int, Any] = {}
    try:
        hold(before)  # inside: the first handler that it sets may be called at once
        with _printing():
            yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and state.number is None:
            state.number = signal.SIGINT
        if state.number is None:
            raise
    finally:
        if state.number is None:
            state.doors += 1
            release(before)
    if state.number is None:
        return
    give_back()
    if state.listens:
        logging.disable()  # what libraries say at their own end
        for number in WORDS:  # the key pressed twice; `_watch` sees to it that there is an end
            signal.signal(number, signal.SIG_IGN)
    else:  # a caller that goes on
        state.doors += 1
        release(before)
    if not state.quiet:
        print(line(), file=sys.stderr)
    number = state.number
    if not state.listens:
        state.number = None
    raise SystemExit(128 + number)


@contextmanager
def _printing() -> Iterator[None]:
    """Have all that is printed written at the end; end where that can't be.

    Raises:
        SystemExit: with 128 + SIGPIPE's number where nobody reads it, with 1 where it can't be
            written for another reason, in one line.
    """
    try:
        try:
            yield
        except SystemExit:
            _flush()
            raise
        _flush()
    except BrokenPipeError:
        if not _without_reader():  # it was another pipe
            raise
        _let_go()
        raise SystemExit(128 + signal.SIGPIPE) from None


def _without_reader() -> list[int]:
    """Return those of the numbers of stdout and stderr behind which nobody reads any more."""
    poll = select.poll()
    for number in _numbers(sys.stdout, sys.stderr):
        poll.register(number, 0)
    return [number for number, event in poll.poll(0) if event & select.POLLERR]


def _numbers(*streams: TextIO | None) -> list[int]:
    """Return the file numbers of streams; none of one that the shell has closed, or no file's."""
    found = []
    for stream in streams:
        with suppress(AttributeError, OSError, ValueError):
            found.append(stream.fileno())  # type: ignore[union-attr]
    return found


def said(text: str, end: str = "\n") -> int:
    """Print text, all that a command has to say; return 0, or 1 where it can't be written."""
    if sys.stdout is None:  # closed by the shell, as by >&-
        return 0
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:  # whoever read it has gone: the door's
        raise
    except OSError as error:
        _let_go()
        print(f"error: stdout: {error.strerror}; write it elsewhere", file=sys.stderr)
        return 1
    return 0


def _flush() -> None:
    if said("", end=""):
        raise SystemExit(1)


def _let_go() -> None:
    """Have what is left to be written go nowhere: Python tries once more at its own end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in {*_numbers(sys.stdout), *_without_reader()}:
        os.dup2(nowhere, number)
    os.close(nowhere)


@contextmanager
def told(way_on: str) -> Iterator[None]:
    """Say way_on instead of the door's own words where the process ends in here."""
    before, state.way_on = state.way_on, way_on
    try:
        yield
    finally:
        if state.number is None:
            state.way_on = before


@contextmanager
def undoing(undo: Callable[[], None]) -> Iterator[None]:
    """Have undo called also where the process ends without coming to the end of this context.

    It may be called twice.
    """
    state.undo.append(undo)
    try:
        yield
    finally:
        if state.number is None:
            state.undo.remove(undo)


@contextmanager
def first(act: Callable[[], None]) -> Iterator[None]:
    """Have act called by a signal before it ends anything here."""
    state.first.append(act)
    try:
        yield
    finally:
        state.first.remove(act)
