"""Records that the repository keeps for its claims: ledger.jsonl, one a line, outcomes included."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from results.records.given import PLACES
from results.records.outcomes import Outcomes, pack, unpack
from results.records.record import Record

LEDGER = Path(__file__).resolve().parents[1] / "ledger.jsonl"
DIGITS = 6  # of a unit's errors


def slim(record: Record) -> Record:
    """Return record with no more of its units than verdicts use, and no place of a machine."""
    blocks = [
        {"name": unit["name"], "error_after": float(f"{unit['error_after']:.{DIGITS}g}")}
        for unit in record.blocks
    ]
    return replace(record, blocks=blocks, versions={}, places={}, overrides=_given(record))


def _given(record: Record) -> list[str]:
    """Return what the command line gave but for the places of data."""
    return [text for text in record.overrides or () if text.partition("=")[0] not in PLACES]


def written(entries: Iterable[tuple[Record, Outcomes]]) -> bytes:
    """Return records with their outcomes as the bytes of a file, a line each, ordered by run."""
    lines = []
    for record, outcomes in sorted(entries, key=lambda entry: entry[0].run_id):
        entry: dict[str, Any] = {"record": slim(record).to_json()}
        if outcomes:
            entry["outcomes"] = base64.b64encode(pack(outcomes, record.started)).decode()
        lines.append(json.dumps(entry, sort_keys=True))
    return "".join(f"{line}\n" for line in lines).encode()


def read(path: Path = LEDGER) -> list[tuple[Record, Outcomes]]:
    """Return the records of a file with their outcomes; none where there is no file.

    Raises:
        ValueError: names the line that holds none.
    """
    found = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            entry = json.loads(line)
            record = Record.from_json(entry["record"])
            data = base64.b64decode(entry.get("outcomes", ""))
            found.append((record, unpack(data, record.started) if data else {}))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path.name}:{number}: {error}") from error
    return found
