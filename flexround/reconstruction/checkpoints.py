"""Checkpoints: what is kept of every finished unit, so that a run that was cut off goes on.

Both streams are computed again from the blocks, bit for bit on a CPU.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from flexround.reconstruction.snapshots import Snapshot, from_bytes, to_bytes
from flexround.utils.atomic_files import write_whole
from flexround.utils.file_errors import read_bytes

log = logging.getLogger(__name__)

KEY = "key.json"


class Checkpoints(Protocol):
    """Keeps the finished units of one run."""

    def find(self, unit: str) -> Snapshot | None:
        """Return the unit as an earlier attempt left it, None where none did."""
        ...

    def save(self, unit: str, snapshot: Snapshot) -> None:
        """Keep a unit that has just been finished."""
        ...


class NoCheckpoints:
    """Keeps nothing."""

    def find(self, unit: str) -> Snapshot | None:
        """Return None."""

    def save(self, unit: str, snapshot: Snapshot) -> None:
        """Do nothing."""


class FileCheckpoints:
    """One safetensors file a unit in a folder of the run's own, named by order and digest.

    key says what the units belong to; a folder of another key is emptied. A damaged file ends what
    can be used: the units behind it were made from it. Where a file can't be read or written, it is
    told, nothing is removed, and the run goes on without checkpoints.

    Attributes:
        seconds_before: what the units took that an earlier attempt has left and `find` returned.
    """

    def __init__(self, folder: str | Path, key: Mapping[str, Any]) -> None:
        self._folder, self._writes = Path(folder), True
        self._key = json.dumps(key, sort_keys=True)
        self._found: dict[str, Path] = {}
        self.seconds_before = 0.0
        try:
            self._found = self._read()  # checked, not held: a large model's integers fill memory
        except OSError as error:
            self._stop(error)
        self._next = len(self._found)
        if self._found:
            log.info("going on after %d finished units of an earlier attempt", len(self._found))

    def find(self, unit: str) -> Snapshot | None:
        """Return the unit as an earlier attempt left it, None where none did."""
        path = self._found.get(unit)
        if path is None:
            return None
        try:
            snapshot = _load(path)[1]
        except (OSError, ValueError) as error:
            # The units behind it were made from it.
            log.warning("checkpoint %s can't be used any more: %s", path, error)
            self._found, self._writes = {}, False
            return None
        self.seconds_before += snapshot.report.seconds
        return snapshot

    def save(self, unit: str, snapshot: Snapshot) -> None:
        """Keep a unit that has just been finished."""
        if not self._writes:
            return
        data = to_bytes(unit, snapshot)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._next:
                write_whole(self._folder / KEY, self._key.encode())
            name = f"{self._next:04d}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
            write_whole(self._folder / name, data)
        except OSError as error:
            self._stop(error)
        self._next += 1

    def clear(self) -> None:
        """Delete them."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._found, self._next = {}, 0

    def _stop(self, error: OSError) -> None:
        log.warning("no checkpoints from here on: %s (%s)", error.strerror, self._folder)
        self._writes = False

    def _read(self) -> dict[str, Path]:
        """Return the files of the units that can be used, by unit.

        Raises:
            OSError: when the folder can't be read.
        """
        try:
            key = read_bytes(self._folder / KEY)
        except FileNotFoundError:
            key = b""
        if key != self._key.encode():
            if self._folder.exists():
                log.info(
                    "the checkpoints in %s are of another version or attempt; removed", self._folder
                )
                shutil.rmtree(self._folder)
            return {}
        found: dict[str, Path] = {}
        files = sorted(self._folder.glob("*.safetensors"))
        for index, path in enumerate(files):
            try:
                unit, _ = _load(path)
                if not path.name.startswith(f"{index:04d}-"):
                    raise ValueError("those before it are gone")
            except ValueError as error:
                if isinstance(error, OSError):
                    raise
                log.warning("checkpoint %s is damaged (%s); going on from before it", path, error)
                path.replace(path.with_suffix(".damaged"))
                for later in files[index + 1 :]:
                    later.unlink(missing_ok=True)
                break
            except OSError as error:
                self._stop(error)
                break
            found[unit] = path
        return found


def _load(path: Path) -> tuple[str, Snapshot]:
    """Return (unit, snapshot) of a file.

    Raises:
        OSError: when it can't be read.
        ValueError: when it is not what was written.
    """
    data = read_bytes(path)
    if hashlib.sha256(data).hexdigest()[:16] != path.stem.partition("-")[2]:
        raise ValueError("its digest is another one")
    return from_bytes(data, str(path))
