"""Gathering of what claims rest on: the records of a folder and those that the repository keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from results.ledger import kept
from results.ledger.claims import Claim, read
from results.ledger.evidence import cells_of
from results.ledger.verdicts import Verdict, verdicts
from results.records.outcomes import Outcomes
from results.records.reading import outcomes_in, rows_in, with_units
from results.records.record import Record
from results.records.store import Store


class Evidence:
    """The runs of claims' cells, of the ledger and of a folder if any, the newer of two.

    Attributes:
        found: the record of each cell and seed.
    """

    def __init__(
        self,
        claims: Iterable[Claim],
        place: Path | None = None,
        rows: Sequence[Record] | None = None,
    ) -> None:
        """Take the place of records, a folder or a .jsonl file, and its rows where they are read.

        Raises:
            ValueError: when place holds something else, or the ledger is damaged.
        """
        self._kept = {record.run_id: (record, outcomes) for record, outcomes in kept.read()}
        self._outcomes = None if place is None else outcomes_in(place)
        own: dict[str, Record] = {}
        if place is not None and place.exists():
            rows = _rows_if_any(place) if rows is None else rows
            found, wanted = cells_of(rows), {cell for claim in claims for cell in claim.cells}
            # Units are read of the runs of claims alone.
            named = [r for cell in wanted & found.keys() for r in found[cell].values()]
            own = {record.run_id: record for record in with_units(place, named)}
        for run_id, (record, _) in self._kept.items():
            if run_id not in own or own[run_id].started < record.started:
                own[run_id] = record
        self.found = cells_of(own.values())

    def outcomes(self, record: Record) -> Outcomes:
        """Return the outcomes of record's evaluation samples."""
        held, outcomes = self._kept.get(record.run_id, (None, {}))
        return outcomes if held is record or self._outcomes is None else self._outcomes(record)


def _rows_if_any(place: Path) -> list[Record]:
    """Return the rows in place; a folder may have none yet."""
    return Store(place).load(blocks=False) if place.is_dir() else rows_in(place)


def verdicts_in(place: Path | None = None, rows: Sequence[Record] | None = None) -> list[Verdict]:
    """Return the verdicts on all claims by the records in place and of the ledger.

    rows are place's records without their units, where the caller has read them.

    Raises:
        ValueError: as Evidence does.
    """
    claims = read()
    evidence = Evidence(claims, place, rows)
    return verdicts(claims, evidence.found, evidence.outcomes)
