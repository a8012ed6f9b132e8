"""Sections of the page below its tables: methods in order, searches, and the papers' claims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from results.ledger.verdicts import DECIDED, Verdict, as_text, summary
from results.records.record import Record
from results.tables.ranking import ranking
from results.tables.ranking_text import TESTED, methods_text, pairs_text
from results.tables.search import CAPTION, Searched, tables


@dataclass(frozen=True)
class Beside:
    """What a page shows besides its tables and plots.

    Attributes:
        claims: shown where records decide any of them.
        searches: shown where there are any.
        units: the page's records with their units, those first that matter most; as many are read
            as the page has room for.
    """

    claims: Sequence[Verdict] = ()
    searches: Sequence[Searched] = ()
    units: Iterable[Record] = ()


def ranking_of(records: Sequence[Record], by: Sequence[str]) -> dict[str, Any] | None:
    """Return the tables and remarks of all methods in order; None where there is one method."""
    if len({record.quant for record in records if record.status == "ok"}) < 2:
        return None
    found = ranking(records, by)
    shown = [(list(t.columns), t.values.tolist()) for t in (methods_text(found), pairs_text(found))]
    return {"tables": shown, "remarks": [*found.remarks, TESTED]}


def searches_of(found: Sequence[Searched]) -> dict[str, Any] | None:
    """Return each setting's table of searches with what is wrong with them; None without any."""
    if not found:
        return None
    parts = [
        (setting, list(table.columns), table.values.tolist(), problems)
        for setting, table, problems in tables(found)
    ]
    return {"parts": parts, "caption": CAPTION}


def claims_of(told: Sequence[Verdict]) -> dict[str, Any] | None:
    """Return the table of verdicts with its remarks; None where nothing is decided."""
    if not any(verdict.word in DECIDED for verdict in told):
        return None
    table = as_text(told)
    rows = table.values.tolist()
    return {"columns": list(table.columns), "rows": rows, "remarks": summary(told).split("\n\n")}
