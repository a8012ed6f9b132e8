"""Cache of work that runs share, found again by its hash and done once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from flexround.utils.atomic_files import sweep, write_whole
from flexround.utils.exclusive_files import set_aside
from flexround.utils.file_errors import read_bytes
from flexround.utils.leaving import undoing
from results.records.claim import Claim

log = logging.getLogger(__name__)

POLL = 0.2  # seconds between two looks at what another process is making
DIGEST = 32


class Cache:
    """A folder of entries named by a hash of all that they depend on.

    Every entry carries its own digest, checked when it is read. Above limit_gib the entries that
    have not been read for the longest go. A cache that can't be read or written costs time, not the
    run: what is in it is used, it is told once, and what would be kept is not.
    """

    def __init__(self, root: str | Path, limit_gib: float) -> None:
        self._root, self.limit = Path(root), int(limit_gib * 2**30)
        self._told = False

    def get(
        self,
        key: str,
        make: Callable[[], bytes],
        sound: Callable[[bytes], bool] = lambda _: True,
    ) -> bytes:
        """Return the entry called key; make it where it is missing, unless another process does.

        One that is not sound is made again, as a damaged one is.
        """
        if not self.limit:  # nothing is kept, so that nothing is worth waiting for
            return make()
        try:
            found = self._read(key, sound)
        except OSError as error:
            self._tell("no cache", error)
            return make()
        claim = Claim(self._root / f"{key}.claim")
        if found is not None:
            if claim.path.exists() and claim.is_of_dead():  # which left it with the entry there
                with suppress(OSError):
                    claim.free()
            return found
        with undoing(claim.release):
            return self._claimed(key, claim, make, sound)

    def _claimed(
        self, key: str, claim: Claim, make: Callable[[], bytes], sound: Callable[[bytes], bool]
    ) -> bytes:
        """Return the entry called key, made under the claim or found beside its living owner."""
        try:
            while claim.take() is not None:
                time.sleep(POLL)
                found = self._read(key, sound)
                if found is not None:
                    return found
        except OSError as error:
            self._tell("no cache", error)
            return make()
        try:
            return self._read_or_make(key, make, sound)
        finally:
            claim.release()

    def _read_or_make(
        self, key: str, make: Callable[[], bytes], sound: Callable[[bytes], bool]
    ) -> bytes:
        """Return the entry as the holder of its claim does."""
        try:
            found, readable = self._read(key, sound), True
        except OSError as error:
            self._tell("no cache", error)
            found, readable = None, False
        if found is None:
            found = make()
            if readable:  # else it may be sound, and is left to those who can read it
                self._write(key, found)
        return found

    def _path(self, key: str) -> Path:
        return self._root / f"{key}.entry"

    def _read(self, key: str, sound: Callable[[bytes], bool]) -> bytes | None:
        """Return the entry called key, None where there is none or it is damaged.

        Raises:
            OSError: when it can't be read.
        """
        path = self._path(key)
        try:
            held = read_bytes(path)
        except FileNotFoundError:
            return None
        data = held[DIGEST:]
        if hashlib.sha256(data).digest() != held[:DIGEST] or not sound(data):
            aside = set_aside(path, held)
            word = "" if aside is None else f"; set aside as {aside.name} and made again"
            log.warning("cache entry %s is damaged%s", path, word)
            return None
        with suppress(OSError):  # gone meanwhile, or not ours to touch
            os.utime(path)
        return data

    def _write(self, key: str, data: bytes) -> None:
        if len(data) > self.limit:
            return
        try:
            sweep(self._path(key))
            write_whole(self._path(key), hashlib.sha256(data).digest() + data)
        except OSError as error:
            self._tell(f"cache entry {self._path(key)} not kept", error)
        self._evict()

    def _tell(self, what: str, error: OSError) -> None:
        """Say that the cache is not whole: once, not for each of its hundreds of entries."""
        if not self._told:
            log.warning("%s: %s (%s)", what, error.strerror, self._root)
        self._told = True

    def _evict(self) -> None:
        held = []
        for path in (*self._root.glob("*.entry"), *self._root.glob("*.damaged")):
            with suppress(OSError):  # another process has removed it
                stat = path.stat()
                held.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in held)
        for _, size, path in sorted(held):
            if total <= self.limit:
                return
            with suppress(OSError):  # of another user, in a folder where only he may remove it
                path.unlink(missing_ok=True)
                total -= size


def key_of(*parts: Any) -> str:
    """Return the key of an entry that depends on parts, values of JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
