"""Cache of work that runs share, found again by its hash and done once."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from flexround.utils.atomic_files import write_whole
from results.records.claim import Claim

log = logging.getLogger(__name__)

POLL = 0.2  # seconds between two looks at what another process is making
DIGEST = 32


class Cache:
    """A folder of entries named by a hash of all that they depend on.

    Every entry carries its own digest, checked when it is read. Above limit_gib the entries that
    have not been read for the longest go. A cache that can't be written costs time, not the run.
    """

    def __init__(self, root: str | Path, limit_gib: float) -> None:
        self._root, self.limit = Path(root), int(limit_gib * 2**30)

    def get(self, key: str, make: Callable[[], bytes]) -> bytes:
        """Return the entry called key; make it where it is missing, unless another process does."""
        found = self._read(key)
        if found is not None:
            return found
        claim = Claim(self._root / f"{key}.claim")
        try:
            while claim.take() is not None:
                time.sleep(POLL)
                found = self._read(key)
                if found is not None:
                    return found
        except OSError as error:
            log.warning("no cache: %s (%s)", error.strerror, self._root)
            return make()
        try:
            found = self._read(key)
            if found is None:
                found = make()
                self._write(key, found)
            return found
        finally:
            claim.release()

    def _path(self, key: str) -> Path:
        return self._root / f"{key}.entry"

    def _read(self, key: str) -> bytes | None:
        path = self._path(key)
        try:
            held = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("cache entry %s can't be read: %s", path, error.strerror)
            return None
        if hashlib.sha256(held[DIGEST:]).digest() != held[:DIGEST]:
            log.warning("cache entry %s is damaged; set aside and made again", path)
            path.replace(path.with_suffix(".damaged"))
            return None
        try:
            os.utime(path)
        except OSError:  # gone meanwhile, or not ours to touch
            log.debug("cache entry %s can't be touched", path)
        return held[DIGEST:]

    def _write(self, key: str, data: bytes) -> None:
        if len(data) > self.limit:
            return
        try:
            write_whole(self._path(key), hashlib.sha256(data).digest() + data)
            self._evict()
        except OSError as error:
            log.warning("cache entry %s not kept: %s", self._path(key), error.strerror)

    def _evict(self) -> None:
        held = []
        for path in (*self._root.glob("*.entry"), *self._root.glob("*.damaged")):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            held.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in held)
        for _, size, path in sorted(held):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= size
