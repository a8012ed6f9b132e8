"""Digests of the files and folders that settings name: of what they hold, never of where they lie.

Reading gigabytes takes seconds, so that a file's digest is kept by its path, size and times: a
second look at it costs a stat.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from experiment.named_files import named_elsewhere
from flexround.utils.atomic_files import sweep, write_whole
from flexround.utils.file_errors import files_below

log = logging.getLogger(__name__)

PREFIX = "sha256:"
PIECE = 1 << 22  # bytes read at a time
SETTLED = 2.0  # seconds after which a file system's clock tells two writes of a file apart
# Of a folder with a network: weights, configuration and tokenizer, not what was said about them.
NETWORK = (
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json", ".txt", ".model", ".jinja", ".spm",
    ".codes", ".vocab", ".tiktoken",
)  # fmt: skip
REMARKS = ("finetune.json", "trainer_state.json")

Stamp = list[int]


class Contents:
    """Digests of files and folders; what is kept of them lies in the folder given.

    since is a time in seconds: what has changed after it has no digest (a record's own time, where
    an old record is to be named by what its run has read).
    """

    def __init__(self, kept: Path, since: float | None = None) -> None:
        self._kept, self._since = kept, since

    def network(self, path: Path) -> str | None:
        """Return the digest of a file of weights, or of the folder of a network; None without."""
        if path.is_file():
            return self.file(path)
        files = (p for p in path.iterdir() if p.is_file()) if path.is_dir() else ()
        own = [p for p in files if p.suffix in NETWORK and p.name not in REMARKS]
        return self._of({p.name: p for p in own})

    def data(self, path: Path, files: Mapping[str, Sequence[str]], folder: str) -> str | None:
        """Return the digest of the data at path, a file or a folder; None where there is none.

        files are by split the names of the file that is read, the first that exists, in the folder
        or in its own folder of that name; without files all that is in the folder counts.
        """
        if path.is_file():
            return self.file(path)
        if not files:
            return self._of(_all_in(path))
        found = {}
        for split, names in files.items():
            places = [place / name for place in (path, path / folder) for name in names]
            if there := next(filter(Path.is_file, places), None):
                found[split] = there
        return self._of(found)

    def tasks(self, path: Path) -> str | None:
        """Return the digest of a folder of lm-eval's task files and of what they name elsewhere."""
        inside = _all_in(path)
        return self._of(inside | named_elsewhere(path, inside.values()))

    def images(self, root: Path) -> str | None:
        """Return the digest of an ImageFolder: its class folders, and how many files each holds."""
        folders = [p for part in ("val", "train") for p in _entries(root / part) if p.is_dir()]
        if not folders or self._is_late(folders):
            return None
        known = self._read(root)
        stamps = {p.relative_to(root).as_posix(): stamp_of(p) for p in folders}
        counts: dict[str, int] = {}
        for name, stamp in stamps.items():
            held = known.get(name, {})
            fresh = held.get("stamp") == stamp
            counts[name] = held["count"] if fresh else len(_entries(root / name))
        entries = {n: {"stamp": stamps[n], "count": count} for n, count in counts.items()}
        if entries != known and all(map(_is_settled, stamps.values())):
            self._write(root, entries)
        return _digest(f"{name} {count}" for name, count in sorted(counts.items()) if count)

    def file(self, path: Path) -> str | None:
        """Return the digest of a file.

        Raises:
            ValueError: when it changes while it is read.
        """
        if self._is_late([path]):
            return None
        stamp, known = stamp_of(path), self._read(path)
        if known.get("stamp") == stamp:
            return str(known["digest"])
        found = PREFIX + bytes_of(path)[:32]
        if stamp_of(path) != stamp:
            raise ValueError(f"{path} changes while it is read; wait until it is written whole")
        if _is_settled(stamp):
            self._write(path, {"stamp": stamp, "digest": found})
        return found

    def _of(self, files: Mapping[str, Path]) -> str | None:
        """Return one digest of files by name; None without any, or where one is late."""
        digests = {name: self.file(path) for name, path in files.items()}
        if not digests or None in digests.values():
            return None
        return _digest(f"{name} {digest}" for name, digest in sorted(digests.items()))

    def _is_late(self, paths: Iterable[Path]) -> bool:
        if self._since is None:
            return False
        return any(max(p.stat().st_mtime, p.stat().st_ctime) > self._since for p in paths)

    def _entry(self, path: Path) -> Path:
        name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]
        return self._kept / f"{name}.json"

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            known = from_json(self._entry(path).read_bytes())
        except (OSError, ValueError):
            return {}
        return known if _is_entry(known) else {}

    def _write(self, path: Path, entry: Mapping[str, Any]) -> None:
        try:
            self._kept.mkdir(parents=True, exist_ok=True)
            sweep(self._entry(path))
            write_whole(self._entry(path), json.dumps(entry).encode())
        except OSError as error:  # a cache that can't be written costs time, not the run
            log.debug("the digest of %s is not kept: %s", path, error.strerror)


def _all_in(folder: Path) -> dict[str, Path]:
    """Return the files below folder by name, but for the compiled Python that reading it leaves."""
    every = (p for p in files_below(folder) if p.suffix != ".pyc")
    return {p.relative_to(folder).as_posix(): p for p in every}


def bytes_of(path: Path) -> str:
    """Return the SHA-256 of what a file holds, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


class Stamps:
    """Stands for files by their sizes and times.

    Attributes:
        seen: whether there was any.
        settled: whether a later change of any must show in its times.
    """

    def __init__(self) -> None:
        self.seen, self.settled = False, True

    def of(self, path: Path) -> str:
        """Return what changes when path does."""
        stamp = stamp_of(path)
        self.seen = True
        self.settled &= _is_settled(stamp)
        return f"{path.absolute()} {stamp}"


def _is_entry(known: Any) -> bool:
    """Return whether known is an entry of a file, or one of a folder's folders by name."""
    if not isinstance(known, dict):
        return False
    if "digest" in known:
        return isinstance(known["digest"], str) and known["digest"].startswith(PREFIX)
    held = known.values()
    return all(isinstance(v, dict) and isinstance(v.get("count"), int) for v in held)


def stamp_of(path: Path) -> Stamp:
    """Return what changes when a file or folder does; no program sets ctime back."""
    stat = path.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _is_settled(stamp: Stamp) -> bool:
    """Return whether a later write must show in the times of the file or folder of stamp."""
    return time.time() - stamp[-1] / 1e9 > SETTLED


def _entries(folder: Path) -> list[Path]:
    return [Path(entry) for entry in os.scandir(folder)] if folder.is_dir() else []


def _digest(lines: Iterable[str]) -> str:
    return PREFIX + hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
