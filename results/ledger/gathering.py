"""Gathering of what claims rest on: the records of a folder and those that the repository keeps."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from results.ledger import kept
from results.ledger.claims import Claim, read
from results.ledger.evidence import cells_of
from results.ledger.verdicts import Verdict, verdicts
from results.records.outcomes import Outcomes
from results.records.record import Record
from results.records.store import Store


class Evidence:
    """The runs of claims' cells, of the ledger and of a folder if any, the newer of two.

    Attributes:
        found: the record of each cell and seed.
    """

    def __init__(self, claims: Iterable[Claim], folder: Path | None = None) -> None:
        self._store = Store(folder) if folder else None
        self._kept = {record.run_id: (record, outcomes) for record, outcomes in kept.read()}
        own = {record.run_id: record for record in self._of_folder(claims)}
        for run_id, (record, _) in self._kept.items():
            if run_id not in own or own[run_id].started < record.started:
                own[run_id] = record
        self.found = cells_of(own.values())

    def _of_folder(self, claims: Iterable[Claim]) -> list[Record]:
        """Return the folder's runs of claims, the only ones whose units are read."""
        if self._store is None:
            return []
        rows, wanted = (
            cells_of(self._store.load(blocks=False)),
            {c for x in claims for c in x.cells},
        )
        names = [r.run_id for cell in wanted & rows.keys() for r in rows[cell].values()]
        return self._store.load(names)

    def outcomes(self, record: Record) -> Outcomes:
        """Return the outcomes of record's evaluation samples."""
        held, outcomes = self._kept.get(record.run_id, (None, {}))
        if held is record or self._store is None:
            return outcomes
        return self._store.outcomes(record)


def verdicts_in(folder: Path | None = None) -> list[Verdict]:
    """Return the verdicts on all claims by the records of folder and of the ledger.

    Raises:
        ValueError: when the records of a claim do not compare.
    """
    claims = read()
    evidence = Evidence(claims, folder)
    return verdicts(claims, evidence.found, evidence.outcomes)
