"""Records that the repository keeps for its claims: ledger.jsonl, one a line, outcomes included."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import replace
from pathlib import Path

from results.records.given import SURROUNDINGS, below
from results.records.lines import entries_of, to_lines
from results.records.outcomes import Outcomes
from results.records.record import Record

LEDGER = Path(__file__).resolve().parents[1] / "ledger.jsonl"
DIGITS = 6  # of a unit's errors


def slim(record: Record, units: bool) -> Record:
    """Return record without a place of a machine, and of its units their errors, if those.

    Of the packages' versions there is torch's, which decides last bits, and of a transform what it
    says of the whole network, whoever has searched.
    """
    blocks = [
        {"name": unit["name"], "error_after": float(f"{unit['error_after']:.{DIGITS}g}")}
        for unit in (record.blocks if units else ())
    ]
    versions = {name: v for name, v in record.versions.items() if name == "torch"}
    transform = {
        name: value for name, value in record.transform.items()
        if not isinstance(value, dict | list) and name != "blocks_reused"
    }  # fmt: skip
    return replace(
        record, blocks=blocks, versions=versions, transform=transform, places={},
        overrides=_given(record),
    )  # fmt: skip


def _given(record: Record) -> list[str]:
    """Return what the command line gave but for what decides nothing of the value."""
    given = record.overrides or ()
    return [text for text in given if not below(text.partition("=")[0], SURROUNDINGS)]


def written(entries: Iterable[tuple[Record, Outcomes]], units_of: Container[str] = ()) -> bytes:
    """Return records, slim, with their outcomes as the bytes of a file.

    units_of names the runs whose units' errors are wanted; they take a quarter of a line.
    """
    return to_lines((slim(r, r.run_id in units_of), outcomes) for r, outcomes in entries)


def read(path: Path = LEDGER) -> list[tuple[Record, Outcomes]]:
    """Return the records of a file with their outcomes; none where there is no file.

    Raises:
        ValueError: names the line that holds none.
    """
    found = []
    for number, entry in entries_of(path) if path.exists() else ():
        if isinstance(entry, ValueError):
            raise ValueError(f"{path.name}:{number}: {entry}") from entry
        found.append(entry)
    return found
