"""Texts of a ranking: its methods, its pairs, and what was tested."""

from __future__ import annotations

import pandas as pd

from results.tables.formats import latex, markdown
from results.tables.rank_tests import LEAST
from results.tables.ranking import Ranking

TESTED = (
    "p: of two methods alone, by Wilcoxon's signed ranks where all their settings have one metric, "
    "else by the sign test, to which only the order counts; corrected by Holm for the number of "
    f"pairs. A pair needs {LEAST} settings: with fewer no outcome has a p below 5 %."
)


def render(found: Ranking, form: str) -> str:
    """Return the ranking as markdown or latex text, or its bare rows as csv."""
    if form == "csv":
        return pd.DataFrame(found.methods).to_csv(index=False).rstrip("\n")
    if form == "latex":
        tables = [methods_text(found), *([pairs_text(found)] if found.pairs else [])]
        return "\n\n".join(map(latex, tables))
    parts = [markdown(methods_text(found)), *found.remarks]
    if found.pairs:
        parts += [markdown(pairs_text(found)), TESTED]
    return "\n\n".join(parts)


def methods_text(found: Ranking) -> pd.DataFrame:
    """Return the methods' rows as text."""
    rows = []
    for row in found.methods:
        rank = "-" if row["mean_rank"] is None else f"{row['mean_rank']:.2f}"
        wins = "-" if row["wins"] is None else f"{row['wins']:.0f} %"
        rows.append(
            {
                "method": row["method"], "mean rank": rank,
                "rank, 95 %": _span(row["low"], row["high"], row["ranked"], ".2f"),
                "wins": wins,
                "wins, 95 %": _span(row["wins_low"], row["wins_high"], row["settings"], ".0f"),
                "settings": str(row["settings"]), "not told apart from": row["alike"] or "-",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _span(low: float | None, high: float | None, count: int, form: str) -> str:
    if low is None or high is None:
        return f"{count} of {LEAST} settings"
    return f"{low:{form}} to {high:{form}}"


def pairs_text(found: Ranking) -> pd.DataFrame:
    """Return the pairs' rows as text."""
    rows = []
    for row in found.pairs:
        enough = row["p"] is not None
        rows.append(
            {
                "first": row["first"], "second": row["second"], "settings": str(row["settings"]),
                "first ahead": str(row["ahead"]), "second ahead": str(row["behind"]),
                "equal": str(row["equal"]),
                "p": f"{row['p']:.3g}" if enough else f"{row['settings']} of {LEAST} settings",
                "p, corrected": f"{row['corrected']:.3g}" if enough else "-",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
