"""The folder of records: one JSON file a run, written whole by an atomic rename."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexround.utils.atomic_files import check_writable, move, write_whole, written_beside
from flexround.utils.exclusive_files import keep_as, set_aside
from flexround.utils.file_errors import read_bytes, unreadable
from results.records import index
from results.records.claim import Claim
from results.records.dropped import Dropped, tell
from results.records.record import SCHEMA, OldSchema, OtherSchema, Record, parse

if TYPE_CHECKING:
    from results.records.outcomes import Outcomes

log = logging.getLogger(__name__)

MARK = ".schema"  # a file: the folder has no records of an older version


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
            check_writable(self.root)
        except OSError as error:
            raise ValueError(
                f"results_dir={self.root} can't be written ({error.strerror}); "
                "give another with results_dir=PATH, or make room there"
            ) from error

    def get_or_quarantine(self, run_id: str) -> Record | None:
        """Return the record of run_id, or None where there is none.

        One that is damaged is set aside, to be computed again.

        Raises:
            ValueError: when it is of another version, or can't be read and so is not replaced.
        """
        path = self.path(run_id)
        try:
            data = read_bytes(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            advice = "it is not replaced; have its owner change its rights, or give results_dir="
            raise unreadable(f"record {path}", error, advice) from error
        try:
            return parse(data)
        except OtherSchema as error:
            raise ValueError(
                f"{path}: {error}; give another results_dir=, the two do not mix"
            ) from error
        except ValueError as error:
            aside = set_aside(path, data)
            if aside is None:  # by another process, which may have made it anew
                log.warning("record %s is damaged (%s)", path, error)
                return self.peek(run_id)
            log.warning("record %s is damaged (%s); set aside as %s", path, error, aside.name)
            return None

    def claim(self, run_id: str) -> Claim:
        """Return the claim on run_id, which whoever computes it holds."""
        return Claim(self.root / "running" / f"{run_id}.json")

    def unfinished(self, run_id: str) -> Path:
        """Return the folder of the checkpoints of a run."""
        return self.root / "unfinished" / run_id

    def artifact(self, run_id: str) -> Path:
        """Return the folder of the integers that a run with save=true has found."""
        return self.root / "artifacts" / run_id

    def peek(self, run_id: str) -> Record | None:
        """Return the record of run_id as get_or_quarantine does, and touch nothing."""
        path = self.path(run_id)
        try:
            return self._read(path)
        except OldSchema as error:
            log.warning("record %s passed over: %s", path, error)
            return None

    def names(self, run_id: str) -> list[str]:
        """Return what the run called run_id is called, and what it was called before."""
        record = self.peek(run_id)
        return [run_id, *(record.former_ids if record is not None else ())]

    def check_schema(self) -> None:
        """Check that the folder's records are of this version, once for every folder.

        Raises:
            ValueError: when some are of the version before, which names runs otherwise.
        """
        mark = self.root / MARK
        if mark.exists():
            return
        if old := sum(map(_is_old, self._files())):
            raise ValueError(
                f"{old} records in {self.root} have names of an older version, under which no run "
                f"is found again; `python -m results rekey --results-dir {self.root}` renames them"
            )
        write_whole(mark, f"{SCHEMA}\n".encode())

    @cached_property
    def renamed(self) -> dict[str, str]:
        """What runs are called now, by what they were called before."""
        return {
            former: record.run_id
            for record in self.load(blocks=False)
            for former in record.former_ids
        }

    def replaced(self, run_id: str) -> str | None:
        """Return when the finished run began whose record a new one would replace, or None."""
        old = self.peek(run_id)
        return old.started if old is not None and old.status == "ok" else None

    def outcomes_path(self, run_id: str) -> Path:
        """Return where the outcomes of the run's evaluation samples lie."""
        return self.root / "outcomes" / f"{run_id}.npz"

    def outcomes(self, record: Record) -> Outcomes:
        """Return the outcomes of record's evaluation samples, none where none can be read."""
        from results.records.outcomes import read

        return read(self.outcomes_path(record.run_id), record.started)

    def write(self, record: Record, outcomes: Mapping[str, Any] | None = None) -> Path:
        """Write record; an older one of the same run goes to history/. Return its path.

        The outcomes of its evaluation samples, [samples] by metric, are put beside it first; where
        there is no room for both, what was there stays. A folder that was deleted is made again.
        """
        path, kept = self.path(record.run_id), self.outcomes_path(record.run_id)
        self.root.mkdir(parents=True, exist_ok=True)
        data = json.dumps(record.to_json(), indent=1, sort_keys=True).encode()
        with ExitStack() as stack:
            part = stack.enter_context(written_beside(path, data))
            if outcomes:
                from results.records.outcomes import pack

                kept.parent.mkdir(exist_ok=True)
                packed = pack(outcomes, record.started)
                beside = stack.enter_context(written_beside(kept, packed))
            if path.exists():
                old = self.root / "history" / f"{record.run_id}.{_stamp(path)}.json"
                old.parent.mkdir(exist_ok=True)
                keep_as(path, old)  # the last line replaces the record, which is never missing
            if outcomes:
                move(beside, kept)
            move(part, path)
        return path

    def load(
        self,
        run_ids: Iterable[str] | None = None,
        *,
        blocks: bool = True,
        dropped: Dropped | None = None,
    ) -> list[Record]:
        """Return all records, or those of run_ids, oldest first.

        All without their blocks are rows of the folder's index, which is much faster. What can't
        be read is logged, or with dropped put there.
        """
        old = 0

        def read(path: Path) -> Record | None:
            nonlocal old
            try:
                return self._read(path, dropped)
            except OldSchema:
                old += 1
            return None

        found: list[Record | None]
        if run_ids is None and not blocks:
            found = [*index.rows(self.root, read)]
        else:
            paths = self._files() if run_ids is None else map(self.path, run_ids)
            found = [read(path) for path in sorted(set(paths))]
        if old:
            rekey = f"`python -m results rekey --results-dir {self.root}` renames them"
            if not any(found):
                told = f"all {old} records in {self.root} are of an older version; {rekey}"
                raise ValueError(told)
            tell(dropped, f"{old} records", f"of an older version: {rekey}")
        return sorted((r for r in found if r is not None), key=lambda r: r.started)

    def _files(self) -> list[Path]:
        """Return the paths of all records; raise StorageError where the folder can't be read."""
        try:
            names = os.listdir(self.root)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise unreadable(str(self.root), error, "its owner can change its rights") from error
        return [self.root / name for name in names if Path(name).suffix == ".json"]

    def _read(self, path: Path, dropped: Dropped | None = None) -> Record | None:
        """Return the record at path, None where there is none or it can't be read.

        Raises:
            OldSchema: when it is of an older version.
        """
        try:
            return parse(read_bytes(path))
        except OldSchema:
            raise
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            tell(dropped, f"record {path}", str(error))
        return None


def _is_old(path: Path) -> bool:
    try:
        parse(read_bytes(path))
    except (OSError, ValueError) as error:
        return isinstance(error, OldSchema)
    return False


def _stamp(path: Path) -> str:
    """Return when the file was written, as a part of a name."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime(path.stat().st_mtime))
