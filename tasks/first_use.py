"""First use of a network that a task trains itself: made by one process, kept where it can be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from flexround.utils.atomic_files import check_writable
from flexround.utils.file_errors import number_of

log = logging.getLogger(__name__)


@contextmanager
def first_use(path: Path) -> Iterator[bool]:
    """Let one process at a time make what is to be kept at path; yield whether it can be kept.

    Where the folder can't be written (read-only, full, another user's) that is told, and every
    process makes its own.
    """
    lock = FileLock(path.with_suffix(".lock"))
    try:
        check_writable(path.parent)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter where there are no locks
        not_kept(path, error)
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            lock.release()


def not_kept(path: Path, error: BaseException) -> None:
    """Say that what was made is used and not kept at path.

    Raises:
        BaseException: error itself, where it is not the file system's.
    """
    if number_of(error) is None and not isinstance(error, OSError | NotImplementedError):
        raise error
    reason = getattr(error, "strerror", None) or str(error)
    log.warning("%s is not kept, and made again by the next run: %s", path, reason)
