"""The folder of records: one JSON file a run, written whole by an atomic rename."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from results.record import Record

log = logging.getLogger(__name__)


class Store:
    """Records under one folder, named by their run id."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path(self, run_id: str) -> Path:
        """Return where the record of run_id lies."""
        return self.root / f"{run_id}.json"

    def check_writable(self) -> None:
        """Make the folder and prove that a record can be written.

        Raises:
            ValueError: when it can't be, before any work is done.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"results_dir={self.root} can't be written ({error.strerror}); "
                "give another with results_dir=PATH"
            ) from error

    def find(self, run_id: str) -> Record | None:
        """Return the record of run_id, or None where there is none that can be read."""
        path = self.path(run_id)
        return self._read(path) if path.exists() else None

    def write(self, record: Record) -> Path:
        """Write record, replacing an older one of the same run; return its path."""
        path = self.path(record.run_id)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            with part.open("w") as file:
                json.dump(record.to_json(), file, indent=1, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def load(self, run_ids: Iterable[str] | None = None) -> list[Record]:
        """Return all records, or those of run_ids, oldest first."""
        paths = self.root.glob("*.json") if run_ids is None else map(self.path, run_ids)
        found = (self._read(path) for path in sorted(set(paths)) if path.exists())
        return sorted((r for r in found if r is not None), key=lambda r: r.started)

    def _read(self, path: Path) -> Record | None:
        try:
            return Record.from_json(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            log.warning("record %s passed over: %s", path, error)
            return None
