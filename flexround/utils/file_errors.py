"""Errors of the file system: a machine's rather than a file's, and the line that tells them.

A disk without room, a folder without rights, a server that does not answer: what a file holds is
neither known nor damaged then, and a run that met it has not failed.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
CLOSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# What may be gone at the next try: a file server's, or of a machine with too many open files.
PASSING = frozenset({
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.EAGAIN,
    errno.EBUSY, errno.ENOLCK, errno.EREMOTEIO, errno.ENODEV, errno.ENOTCONN, errno.EHOSTDOWN,
})  # fmt: skip
# A path that can be no folder or file of ours.
MISPLACED = frozenset({
    errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY,
})  # fmt: skip
STORAGE = FULL | CLOSED | PASSING | MISPLACED

WAITS = (0.05, 0.2, 0.6)  # seconds before each further try
NUMBER = re.compile(r"\(os error (\d+)\)")  # as safetensors tells an error of writing


class StorageError(OSError, ValueError):
    """A place that can't be read or written, in one line with the way out."""

    def __init__(self, line: str, number: int | None = None, reason: str | None = None) -> None:
        super().__init__(number, reason or line)
        self.line = line

    def __str__(self) -> str:
        """Return the line."""
        return self.line


def unreadable(what: str, error: OSError, advice: str) -> StorageError:
    """Return the refusal of a file or folder that can't be read."""
    line = f"{what} can't be read ({error.strerror}); {advice}"
    return StorageError(line, error.errno, error.strerror)


def files_below(folder: Path) -> list[Path]:
    """Return all files below folder, sorted, none where there is no folder.

    `Path.rglob` passes over what can't be read.

    Raises:
        StorageError: names a folder in it that can't be read.
    """

    def refuse(error: OSError) -> None:
        raise unreadable(str(error.filename), error, "give rights to read it, or take it away")

    found = (
        Path(where, name) for where, _, names in os.walk(folder, onerror=refuse) for name in names
    )
    return sorted(path for path in found if path.is_file()) if folder.is_dir() else []


def read_bytes(path: Path) -> bytes:
    """Return what path holds; an error that may pass is told and tried again a few times.

    Raises:
        OSError: when it can't be read, which says nothing about what it holds.
    """
    for wait in WAITS:
        try:
            return path.read_bytes()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            log.warning("%s: %s; tried again", path, error.strerror)
            time.sleep(wait)
    return path.read_bytes()


def number_of(error: BaseException) -> int | None:
    """Return the errno of STORAGE that error comes from, None where it is another kind."""
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        if number is None and type(seen).__module__.startswith("safetensors"):
            found = NUMBER.search(str(seen))
            number = int(found[1]) if found else None
        if number in STORAGE:
            return number
        seen = seen.__cause__
    return None


def told(error: BaseException) -> str:
    """Return what went wrong with a file or folder on one line, with the way out."""
    if isinstance(error, ValueError):  # it is told already
        return " ".join(str(error).split())
    name = getattr(error, "filename", None)
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    number = number_of(error)
    if number in FULL:
        advice = "nothing recorded is lost; make room, and run the same command again"
    elif number in CLOSED:
        advice = "give a place with the rights for it, or change them"
    elif number in PASSING:
        advice = "nothing recorded is lost; run the same command again"
    else:
        advice = "give another path"
    where = "" if name is None else f"{name}: "
    return " ".join(f"{where}{reason}; {advice}".split())


@contextmanager
def storage_errors(advice: str = "") -> Iterator[None]:
    """Turn an error of the file system in the context into a StorageError of one line.

    advice is what the command line calls the places that it may be about.
    """
    try:
        yield
    except Exception as error:
        number = number_of(error)
        if number is None or isinstance(error, ValueError):
            raise
        line = told(error) + (f" ({advice})" if advice else "")
        raise StorageError(line, number, getattr(error, "strerror", None)) from error
