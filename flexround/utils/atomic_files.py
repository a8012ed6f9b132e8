"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """Yield a file beside path that holds data, to be moved; gone at the end if it was not."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield part
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write data to path, all of it or nothing, replacing what was there."""
    with written_beside(path, data) as part:
        part.replace(path)


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that becomes path when the context ends well, and else is gone.

    A folder that is there already is replaced; a crash leaves the old or the new one, or for the
    moment between two renames the old one as .NAME.old.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    part.mkdir()
    try:
        yield part
        for file in part.rglob("*"):
            _flush(file)
        old = path.with_name(f".{path.name}.old")
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        part.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _flush(file: Path) -> None:
    if file.is_file():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
