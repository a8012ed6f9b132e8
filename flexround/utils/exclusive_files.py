"""Files that one process of many makes or takes away, on file systems without hard links too."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flexround.utils.atomic_files import beside, write_whole

# What a file system without hard links answers, or one that refuses a link to another user's file.
NO_LINKS = frozenset({
    errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK,
    errno.EINVAL, errno.EXDEV,
})  # fmt: skip
PATIENCE = 10.0  # seconds that one gate may stand still before its maker is taken for dead


def place_new(part: Path, path: Path) -> bool:
    """Give the file part the name path unless a file has it; return whether it got it.

    One process alone succeeds, on a file system without hard links too. part may keep its old name.
    """
    linked = _link(part, path)
    if linked is not None:
        return linked
    with gate(path):
        return _rename_new(part, path)


def keep_as(path: Path, kept: Path) -> None:
    """Keep the file at path as kept too, unless that is there; path is never missing meanwhile."""
    if _link(path, kept) is None and not kept.exists():
        write_whole(kept, path.read_bytes())


def set_aside(path: Path, damaged: bytes) -> Path | None:
    """Rename the file at path to NAME.damaged and return that, if damaged is what it still holds.

    Returns None where another process has set it aside, or has made it anew, or where the folder
    can't be written.
    """
    aside = path.with_suffix(".damaged")
    try:
        return aside if take_away(path, damaged, aside) else None
    except OSError:
        return None


def take_away(path: Path, known: bytes, to: Path | None) -> bool:
    """Move the file at path to another name, or delete it, if known is what it still holds.

    Returns whether it did: of many processes at once, one does.
    """
    with gate(path):
        try:
            if path.read_bytes() != known:
                return False
            taken = beside(path)
            path.rename(taken)
        except FileNotFoundError:
            return False
        try:
            same = taken.read_bytes() == known
        except OSError:
            same = False
        if not same:  # written anew between the two lines
            if _link(taken, path) is None:
                _rename_new(taken, path)
            taken.unlink(missing_ok=True)
        elif to is None:
            taken.unlink()
        else:
            taken.replace(to)
        return same


@contextmanager
def gate(path: Path) -> Iterator[None]:
    """Let one process alone into the context for path: it makes a folder, which only one can.

    The gate of a process that has died inside is removed after a while.
    """
    place = path.with_name(f".{path.name}.gate")
    seen, since = None, 0.0
    while True:
        try:
            place.mkdir()
            break
        except FileExistsError:
            now = _identity(place)
            if now != seen:
                seen, since = now, time.monotonic()
            elif now is not None and time.monotonic() - since > PATIENCE:
                _remove_gate(place, now)
            time.sleep(0.01)
    try:
        yield
    finally:
        with suppress(OSError):
            place.rmdir()


def _link(part: Path, path: Path) -> bool | None:
    """Return whether part got the name path too; None where the file system has no hard links."""
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return None
    return True


def _rename_new(part: Path, path: Path) -> bool:
    """Do what `place_new` does, behind the gate."""
    if os.path.lexists(path):
        return False
    part.rename(path)
    return True


def _identity(place: Path) -> tuple[int, int] | None:
    try:
        stat = place.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _remove_gate(place: Path, dead: tuple[int, int]) -> None:
    aside = beside(place)
    with suppress(FileNotFoundError):
        if _identity(place) == dead:
            place.rename(aside)
            aside.rmdir()
