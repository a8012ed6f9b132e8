"""Leftovers of runs that were killed, below a folder of records and a cache.

What its writer's name is in (flexround.utils.processes.mark) is left where that process lives. What
this machine can't tell of, another's or an older version's, is left until it has been QUIET.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flexround.utils.processes import MARK, lives
from results.records.claim import Claim
from results.records.store import Store

QUIET = 600.0  # seconds
_TOKEN = rf"(?P<mark>{re.sub(r'[?]P<[a-z]+>', '', MARK.pattern)}|[0-9a-f]{{32}})"
# What is written under another name until it is whole, and a claim's short-lived helpers; then the
# names of older versions.
PARTS = (
    re.compile(rf"\.(.+\.)?{_TOKEN}(\.\w{{8}})?\.(part|dead)"),
    re.compile(rf"\.(now\.|probe-){_TOKEN}"),
    re.compile(r"\..+\.gate"),
    re.compile(r"\.stream-\w{8}\.part"),
    re.compile(r"\.probe-\d+"),
    re.compile(r"digits-.+\.\d+\.part"),
)
OLD = re.compile(r"\.(?P<name>.+)\.old")


@dataclass(frozen=True)
class Leftover:
    """A file or folder that nobody will use.

    Attributes:
        what: what it is, in words.
        bytes: what it takes on the disk.
        claim: that on what it belongs to, which is held while it is removed.
        damaged: whether it was set aside rather than left.
    """

    path: Path
    what: str
    bytes: int
    claim: Claim | None = None
    damaged: bool = False

    def remove(self) -> bool:
        """Remove it and return True, unless it has come into use since.

        Raises:
            OSError: when it can't be removed.
        """
        if self.claim is not None and self.claim.take() is not None:
            return False
        try:
            name = OLD.fullmatch(self.path.name)
            if name is not None and not (whole := self.path.with_name(name["name"])).exists():
                self.path.rename(whole)  # the only copy, cut off between two renames
            else:
                remove(self.path)
        finally:
            if self.claim is not None:
                self.claim.release()
        return True


def remove(path: Path) -> None:
    """Remove a file or a folder; nothing where another has done so.

    Raises:
        OSError: when it can't be removed.
    """
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def leftovers(
    results: Path | None, cache: Path | None, networks: Path | None = None
) -> list[Leftover]:
    """Return what killed runs have left, in order of its path.

    It is looked for in a folder of records, in a cache, and where fine-tuned networks lie.
    """
    found = list(_of_results(Store(results))) if results is not None else []
    if cache is not None:
        for folder in (cache, *(p for p in _entries(cache) if p.is_dir())):
            found += _parts(folder)
        found += _claims(cache / "shared", "*.claim")
        found += [f for name in ("shared", "checkpoints") for f in _set_aside(cache / name)]
        found += _old(cache / "checkpoints")
    if networks is not None:
        found += _parts(networks)
        for folder in (p for p in _entries(networks) if p.is_dir()):
            found += [*_parts(folder), *_old(folder)]
    return sorted(found, key=lambda one: one.path)


def sweep(store: Store, run_id: str) -> None:
    """Remove what earlier attempts at a run have left, by whoever holds its claim."""
    places = (store.path(run_id), store.outcomes_path(run_id), store.artifact(run_id))
    patterns = [(place.parent, f".{place.name}.*.part") for place in places]
    for folder, pattern in (
        *patterns, (store.root, ".probe*"), (store.root / "running", ".now.*"),
        (store.unfinished(run_id), ".*.part"),
    ):  # fmt: skip
        for path in folder.glob(pattern):
            _remove_dead(path)


def sweep_parts(folder: Path) -> None:
    """Remove what writers that have died have left in a folder."""
    for path in _entries(folder):
        _remove_dead(path)


def is_stale(store: Store, run_id: str) -> bool:
    """Return whether there are checkpoints of a finished run, which no attempt can go on from.

    Those of a rerun that was cut off say that they replace the record that there is.
    """
    folder = store.unfinished(run_id)
    record = store.peek(run_id) if folder.is_dir() else None
    if record is None or record.status != "ok":
        return False
    try:
        key = json.loads((folder / "key.json").read_text())
    except (OSError, ValueError):
        return True
    return not isinstance(key, dict) or key.get("replaces") != record.started


def _of_results(store: Store) -> Iterator[Leftover]:
    root = store.root
    unfinished = [p for p in _entries(root / "unfinished") if p.is_dir()]
    for name in ("", "running", "outcomes", "artifacts", "history"):
        yield from _parts(root / name)
    for folder in (root, root / "running", *unfinished):
        yield from _set_aside(folder)
    yield from _claims(root / "running", "*.json")
    yield from _old(root / "artifacts")
    for folder in unfinished:
        claim = store.claim(folder.name)
        if is_stale(store, folder.name) and not claim.seems_alive():
            yield Leftover(folder, "checkpoints of a finished run", size_of(folder), claim)
        else:
            yield from _parts(folder)


def _parts(folder: Path) -> Iterator[Leftover]:
    for path in _entries(folder):
        if _is_part(path) and not _is_written(path):
            yield Leftover(path, "part of a write", size_of(path))


def _set_aside(folder: Path) -> Iterator[Leftover]:
    for path in _entries(folder):
        if path.suffix == ".damaged":
            yield Leftover(path, "damaged, set aside", size_of(path), damaged=True)


def _old(folder: Path) -> Iterator[Leftover]:
    for path in _entries(folder):
        match = OLD.fullmatch(path.name)
        if match is not None and _age(path.parent) > QUIET:
            there = path.with_name(match["name"]).exists()
            what = "replaced" if there else "the only copy, put back under its name"
            yield Leftover(path, what, size_of(path))


def _claims(folder: Path, pattern: str) -> Iterator[Leftover]:
    for path in sorted(folder.glob(pattern)):
        claim = Claim(path)
        owner = claim.owner()
        gone = owner is not None and (
            claim.is_of_dead() if owner.here else _age(path) > QUIET  # it would have beaten since
        )
        if gone:
            yield Leftover(path, f"claim of {owner}, which is gone", size_of(path), claim)


def _is_part(path: Path) -> bool:
    return any(pattern.fullmatch(path.name) for pattern in PARTS)


def _is_written(path: Path) -> bool:
    """Return whether the writer of a part may live."""
    match = PARTS[0].fullmatch(path.name) or PARTS[1].fullmatch(path.name)
    alive = lives(match["mark"]) if match is not None else None
    return _age(path) <= QUIET if alive is None else alive


def _remove_dead(path: Path) -> None:
    if _is_part(path) and not _is_written(path):
        with suppress(OSError):  # of another user's, as it may be
            remove(path)


def _age(path: Path) -> float:
    """Return seconds since the newest change in path."""
    times = [0.0]
    for one in (path, *(path.rglob("*") if path.is_dir() else ())):
        with suppress(OSError):
            times.append(one.lstat().st_mtime)
    return time.time() - max(times)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    total = 0
    for one in (path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())):
        with suppress(OSError):
            total += 0 if one.is_dir() else one.lstat().st_size
    return total


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
