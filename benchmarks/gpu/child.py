"""Child process of a part: what one part breaks or leaves on the card ends with it.

The parent never touches the GPU, so that a fork may use it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from benchmarks.gpu.context import Row, clean, one_line


class PartFailed(Exception):
    """The end of a part that came to no end of its own."""


class PartCut(Exception):
    """The end of a part whose time was over."""


def rows_of(make: Callable[[], Iterator[Row]], seconds: float) -> Iterator[Row]:
    """Yield what make yields in a process of its own, as it comes.

    Raises:
        PartFailed: when it raises, or the process dies.
        PartCut: when it takes longer than seconds.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _work(make, writer)
    os.close(writer)
    with suppress(OSError):  # it has done so itself
        os.setpgid(pid, pid)
    try:
        yield from _messages(reader, pid, time.monotonic() + seconds)
    finally:
        os.close(reader)
        with suppress(ProcessLookupError, PermissionError):  # its own children, too
            os.killpg(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _work(make: Callable[[], Iterator[Row]], writer: int) -> None:
    """Send what make yields and end the process."""
    end: Row = {"end": True}
    try:
        with suppress(OSError):
            os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(2, 1)  # the parent's output is the parent's
        for row in make():
            _send(writer, {"row": clean(row)})
    except BaseException as error:
        end = {"failed": one_line(error)}
    with suppress(OSError):
        _send(writer, end)
    sys.stderr.flush()
    os._exit(0)


def _send(writer: int, message: object) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(writer, data) :]


def _messages(reader: int, pid: int, deadline: float) -> Iterator[Row]:
    held = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            raise PartCut
        data = os.read(reader, 1 << 16)
        if not data:
            raise PartFailed(_death(pid))
        *lines, held = (held + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "end" in message:
                return
            if "failed" in message:
                raise PartFailed(message["failed"])
            yield message["row"]


def _death(pid: int) -> str:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return f"the process ended by signal {-status}" if status < 0 else f"exit status {status}"
