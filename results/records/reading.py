"""Reading of records for a view: those of a folder or file, chosen, with their units where asked.

The command line and the notebook's functions read records here alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.records.dropped import Dropped, tell, told
from results.records.lines import entries_of
from results.records.record import Record
from results.records.selection import select, why_none
from results.records.store import Store

if TYPE_CHECKING:
    from results.records.outcomes import Outcomes

log = logging.getLogger(__name__)

OUTPUTS = Path(__file__).resolve().parents[2] / "outputs"
DEFAULT = OUTPUTS / "results"  # where run.py writes records


def read(
    place: str | Path, where: Mapping[str, Any] | None = None, dropped: Dropped | None = None
) -> list[Record]:
    """Return the records in place without their units, oldest first: those with where's settings.

    As rows_in reads them and chosen_of chooses.

    Raises:
        ValueError: as both do.
    """
    return chosen_of(rows_in(place, dropped), where)


def rows_in(place: str | Path, dropped: Dropped | None = None) -> list[Record]:
    """Return all records in place without their units, oldest first.

    place is a folder with one file a run, or a .jsonl file with one line a run. What can't be read
    is logged, or with dropped put there.

    Raises:
        ValueError: when there is no record, or none that can be read.
    """
    place = Path(place).expanduser()
    if not place.exists():
        raise ValueError(f"{place}: there is no such folder; python run.py writes records into one")
    if place.is_dir():
        records = Store(place).load(blocks=False, dropped=dropped)
    else:
        records = [record for record, _ in _lines(place, dropped)]
    if not records:
        raise ValueError(
            f"none of the {len(dropped)} records in {place} can be read: {told(dropped)}"
            if dropped
            else f"no records in {place}; python run.py writes them"
        )
    once = _once(records)
    if len(once) < len(records):  # a copy of a file, or lines that were appended twice
        log.warning(
            "%s: %d of %d records are there more than once; the newest of each counts",
            place, len(records) - len(once), len(records),
        )  # fmt: skip
    return once


def _once(records: Sequence[Record]) -> list[Record]:
    """Return the newest record of each run, a finished one where there is one, in their order."""
    ordered = sorted(records, key=lambda record: (record.status == "ok", record.started))
    newest = {record.run_id: record for record in ordered}
    return [record for record in records if record is newest[record.run_id]]


def chosen_of(records: Sequence[Record], where: Mapping[str, Any] | None = None) -> list[Record]:
    """Return the records with where's settings, values compared as the command line's words.

    Raises:
        ValueError: when there is none.
    """
    wanted = {name: str(value) for name, value in (where or {}).items()}
    chosen = select(records, wanted)
    if not chosen:
        raise ValueError(why_none(records, wanted))
    return chosen


def with_units(place: str | Path, rows: Sequence[Record]) -> list[Record]:
    """Return the records in place that rows are of, with their units."""
    place, names = Path(place).expanduser(), {row.run_id for row in rows}
    if not place.is_dir():
        return _once([record for record, _ in _lines(place) if record.run_id in names])
    found = Store(place).load(names)
    if len(found) < len(rows):  # a file is called otherwise than its run
        found = _once([record for record in Store(place).load() if record.run_id in names])
    return found


def newest_with_units(place: str | Path, rows: Sequence[Record]) -> Iterator[Record]:
    """Yield the records in place that rows are of, with their units, the newest first.

    rows are the oldest first. A folder's file is read when its record is asked for; one that is
    called otherwise than its run is passed over.
    """
    place = Path(place).expanduser()
    if not place.is_dir():
        yield from reversed(with_units(place, rows))
        return
    store = Store(place)
    for row in reversed(rows):
        record = store.peek(row.run_id)
        if record is not None and record.run_id == row.run_id:
            yield record


def outcomes_in(place: str | Path) -> Callable[[Record], Outcomes]:
    """Return what finds the outcomes of a record's evaluation samples, none where none are kept."""
    place = Path(place).expanduser()
    if place.is_dir():
        return Store(place).outcomes

    @cache
    def held() -> dict[str, Outcomes]:
        return {record.run_id: outcomes for record, outcomes in _lines(place, [])}

    return lambda record: held().get(record.run_id, {})


def _lines(path: Path, dropped: Dropped | None = None) -> list[tuple[Record, Outcomes]]:
    """Return the records of a file with one a line, oldest first, each with its outcomes.

    Raises:
        ValueError: when it is no such file, or can't be read.
    """
    found = []
    for number, entry in entries_of(path):
        if isinstance(entry, ValueError):
            tell(dropped, f"line {number} of {path}", str(entry))
        else:
            found.append(entry)
    return sorted(found, key=lambda entry: entry[0].started)
