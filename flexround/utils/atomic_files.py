"""Files that are there whole or not at all, whatever ends the process and whatever disk is full."""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flexround.utils.file_errors import StorageError

# What a file system without hard links answers, or one that refuses a link to another user's file.
NO_LINKS = frozenset({
    errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK,
    errno.EINVAL, errno.EXDEV,
})  # fmt: skip
# What one that can't sync a folder answers; or the folder may be written and not read.
NO_SYNC = frozenset({
    errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EISDIR,
    errno.EACCES, errno.EPERM, errno.ENOENT,
})  # fmt: skip
PATIENCE = 10.0  # seconds that one gate may stand still before its maker is taken for dead


def beside(path: Path) -> Path:
    """Return a name in path's folder that nobody else has, for what is to become path."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")


@contextmanager
def written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """Yield a file beside path that holds data, to be moved; gone at the end if it was not."""
    part = beside(path)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield part
    finally:
        with suppress(OSError):  # the error that brought us here is the one to tell
            part.unlink(missing_ok=True)


def move(part: Path, path: Path) -> None:
    """Make part the file called path, and the change of the folder as lasting as its content."""
    part.replace(path)
    sync_folder(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write data to path, all of it or nothing, replacing what was there."""
    with written_beside(path, data) as part:
        move(part, path)


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that becomes path when the context ends well, and else is gone.

    A folder that is there already is replaced; a crash leaves the old or the new one, or for the
    moment between two renames the old one as .NAME.old.

    Raises:
        StorageError: when somebody has deleted it meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = beside(path)
    part.mkdir()
    try:
        yield part
        for file in part.rglob("*"):
            _flush(file)
        sync_folder(part)
        old = path.with_name(f".{path.name}.old")
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        try:
            part.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        if part.exists() or path.exists():
            raise
        line = f"{path.parent} was deleted while {path.name} was written; run the command again"
        raise StorageError(line, errno.ENOENT, "it was deleted") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


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


def sync_folder(folder: Path) -> None:
    """Make names in folder last through a crash of the machine, where its file system can."""
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in NO_SYNC:
            return
        raise
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(opened)


def _flush(file: Path) -> None:
    if file.is_file():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
