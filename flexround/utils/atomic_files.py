"""Files that are there whole or not at all, whatever ends the process and whatever disk is full."""

from __future__ import annotations

import errno
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flexround.utils.file_errors import StorageError, number_of
from flexround.utils.processes import lives, mark

# What one that can't sync a folder answers; or the folder may be written and not read.
NO_SYNC = frozenset({
    errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EISDIR,
    errno.EACCES, errno.EPERM, errno.ENOENT,
})  # fmt: skip
PROBE = 1 << 14  # bytes


def beside(path: Path) -> Path:
    """Return a name in path's folder that nobody else has, for what is to become path."""
    return path.with_name(f".{path.name}.{mark()}.part")


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
    except OSError as error:
        if error.filename is None:  # as writing has it
            error.filename = str(path)
        raise
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


def check_writable(folder: Path, size: int = PROBE) -> None:
    """Make folder and prove that a file of size bytes finds room in it.

    Raises:
        OSError: when it can't be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with written_beside(folder / "probe", bytes(size)):
        pass


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that becomes path when the context ends well, and else is gone.

    A folder that is there already is replaced; a crash leaves the old or the new one, or for the
    moment between two renames the old one as .NAME.old.

    Raises:
        OSError: when it can't be written, whatever library has met that.
        StorageError: when somebody has deleted it meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    part = beside(path)
    part.mkdir()
    try:
        yield part
        for file in part.rglob("*"):
            _flush(file)
        sync_folder(part)
        publish(part, path)
    except Exception as error:
        number = number_of(error)
        named = isinstance(error, ValueError) or getattr(error, "filename", None) is not None
        if number is not None and not named:
            raise OSError(number, os.strerror(number), str(path)) from error
        if part.exists() or path.exists():
            raise
        line = f"{path.parent} was deleted while {path.name} was written; run the command again"
        raise StorageError(line, errno.ENOENT, "it was deleted") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def publish(part: Path, path: Path) -> None:
    """Have the whole folder part become path, beside it, in the place of one that is there.

    Raises:
        OSError: when it can't be renamed; part is then where it was.
    """
    old = path.with_name(f".{path.name}.old")
    try:
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        part.rename(path)
    except BaseException:  # Ctrl-C between the two as well
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


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


def sweep(path: Path) -> None:
    """Remove what processes that have died since had written of path, a file or a folder."""
    start = f".{path.name}."
    for part in path.parent.glob(f"{glob.escape(start)}*"):
        writer, _, ending = part.name[len(start) :].rpartition(".")
        if ending in ("part", "dead") and lives(writer) is False:
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                with suppress(OSError):
                    part.unlink(missing_ok=True)


def _flush(file: Path) -> None:
    if file.is_file():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
