"""A disk that is full from its n-th change on: every write of Python below a folder is counted."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WRITES = set("wxa+")


class FullDisk:
    """Lets so many changes below root pass; then each fails, or that one alone if once."""

    def __init__(self, root: Path, passes: int, once: bool = False) -> None:
        self.root, self.passes, self.once, self.seen = str(root), passes, once, 0

    def change(self, path: object) -> None:
        """Count a change of path.

        Raises:
            OSError: there is no space left.
        """
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if not str(path).startswith(self.root):
            return
        self.seen += 1
        if self.seen == self.passes + 1 or (self.seen > self.passes and not self.once):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    @contextmanager
    def mounted(self) -> Iterator[FullDisk]:
        """Have every change go through here; deleting needs no room."""
        kept = {name: getattr(os, name) for name in ("link", "rename", "replace", "mkdir", "fsync")}
        opened = io.open

        def counted(name):
            def call(path, *args, **kwargs):
                self.change(args[0] if name == "link" else path)
                return kept[name](path, *args, **kwargs)

            return call

        def open_(file, mode="r", *args, **kwargs):
            if WRITES & set(mode):
                self.change(file)
            return opened(file, mode, *args, **kwargs)

        for name in kept:
            setattr(os, name, counted(name))
        io.open = builtins.open = open_
        try:
            yield self
        finally:
            for name, call in kept.items():
                setattr(os, name, call)
            io.open = builtins.open = opened


def leftovers(root: Path) -> list[str]:
    """Return what lies below root that a write has left half done."""
    return [
        str(path) for path in root.rglob("*")
        if path.name.endswith((".part", ".old", ".gate", ".dead")) or path.name.startswith(".probe")
    ]  # fmt: skip
