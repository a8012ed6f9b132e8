"""Runs and rows as the page's script reads them: facts, commands, settings, each said once."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from results.page.units import number
from results.records.record import Record
from results.records.selection import facts
from results.tables.cell import SEEDS
from results.tables.leaderboard import CELL


class Made:
    """What many runs have in common, each said once: commit, versions, device, network."""

    def __init__(self) -> None:
        self.facts: dict[tuple[str, str, str, str], int] = {}

    def of(self, record: Record) -> int:
        """Return the number of what made record."""
        versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
        threads = "" if record.threads is None else f"{record.threads} threads"
        machine = ", ".join(
            filter(None, (record.device, record.precision, record.processor, threads))
        )
        network = (record.network or "unknown")[:12]
        facts = (record.commit or "unknown", versions or "unknown", machine or "unknown", network)
        return self.facts.setdefault(facts, len(self.facts))


def runs_of(rows: Sequence[Sequence[Record]]) -> dict[str, Any]:
    """Return the runs of each row, what made them, and the settings of each row."""
    made = Made()
    runs = [[_run(record, made) for record in members] for members in rows]
    return {"runs": runs, "made": list(map(list, made.facts)), "settings": _settings(rows)}


def moment(text: str) -> str:
    """Return an ISO time without what nobody reads; text itself where it is none."""
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{found:%Y-%m-%d %H:%M} {found.tzname() or ''}".rstrip()


def _run(record: Record, made: Made) -> list[str | int | None]:
    """Return what the script shows of a run, in the order of its `FIELDS`."""
    value = "" if record.value is None else f"{record.value:.8g}"
    memory = number(record.peak_memory_gib) if record.peak_memory_gib else ""
    return [
        record.run_id, record.status, record.seed, value, f"{record.seconds:.1f}",
        moment(record.started), made.of(record), record.error, record.command(), memory,
    ]  # fmt: skip


def _text(name: str, value: Any) -> str:
    """Return a setting as it is shown; a mean over millions of weights has digits nobody reads."""
    if name == "average_bits" and value is not None:
        return number(value)
    return value if isinstance(value, str) else json.dumps(value)


def _settings(rows: Sequence[Sequence[Record]]) -> dict[str, Any]:
    """Return the settings that tell rows apart, as text, in few bytes.

    `shared` has the most frequent text of each setting, None for having no such setting; `own` by
    row the places in `values` of what it has instead, names and texts. A row's settings are those
    of its first run: its runs differ in their seeds alone.
    """
    told = [
        {
            name: _text(name, value)
            for name, value in facts(members[0]).items()
            if name not in (*SEEDS, *CELL)
        }
        for members in rows
    ]
    names = dict.fromkeys(name for texts in told for name in texts)
    shared = {
        name: Counter(texts.get(name) for texts in told).most_common(1)[0][0] for name in names
    }
    values: dict[tuple[str, str | None], int] = {}
    own = [
        [
            values.setdefault((name, texts.get(name)), len(values))
            for name, text in shared.items()
            if texts.get(name) != text
        ]
        for texts in told
    ]
    return {"shared": shared, "values": list(map(list, values)), "own": own}
