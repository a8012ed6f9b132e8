"""Sections of the page below its tables: methods in order, and the papers' claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from results.ledger.verdicts import DECIDED, Verdict, as_text, summary
from results.records.record import Record
from results.tables.ranking import ranking
from results.tables.ranking_text import TESTED, methods_text, pairs_text


def ranking_of(records: Sequence[Record], by: Sequence[str]) -> dict[str, Any] | None:
    """Return the tables and remarks of all methods in order; None where there is one method."""
    if len({record.quant for record in records if record.status == "ok"}) < 2:
        return None
    found = ranking(records, by)
    tables = [
        (list(t.columns), t.values.tolist()) for t in (methods_text(found), pairs_text(found))
    ]
    return {"tables": tables, "remarks": [*found.remarks, TESTED]}


def claims_of(told: Sequence[Verdict]) -> dict[str, Any] | None:
    """Return the table of verdicts with its remarks; None where nothing is decided."""
    if not any(verdict.word in DECIDED for verdict in told):
        return None
    table = as_text(told)
    rows = table.values.tolist()
    return {"columns": list(table.columns), "rows": rows, "remarks": summary(told).split("\n\n")}
