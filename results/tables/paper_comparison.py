"""Our numbers beside the paper's, cell by cell: value, difference, and the order of the methods.

The paper's value of an ImageNet cell is the median of five trials; ours is the median of the seeds
that there are. A difference counts as noise (~) when it is no larger than the standard deviation of
at least two seeds. Which checkpoint was quantized shows in the full-precision rows, and other
numbers of samples or iterations than the paper's in the note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from statistics import fmean, median, stdev
from typing import Any

import pandas as pd

from results.records.record import Record
from results.records.selection import fact
from results.tables.cell import differing
from results.tables.formats import markdown
from results.tables.paper_cells import TUNED, is_measured, is_run, other_numbers, task_of
from results.tables.published_numbers import Cell, published

LOWER_IS_BETTER = ("perplexity",)


@dataclass(frozen=True)
class ComparedCell:
    """A published cell with our values of it, one a seed, and what is to be noted of these."""

    cell: Cell
    ours: Sequence[float]
    note: str = ""

    @property
    def value(self) -> float | None:
        """Our median, None without a run."""
        return median(self.ours) if self.ours else None

    @property
    def noise(self) -> bool:
        """Whether the difference to the paper is within the seeds' spread."""
        if self.value is None or len(self.ours) < 2:
            return False
        return abs(self.value - self.cell.value) <= stdev(self.ours)


def compare_with_paper(table: str, records: Sequence[Record]) -> list[ComparedCell]:
    """Return every cell of a published table with what records have of it.

    Raises:
        ValueError: when there is no such table, or runs of one cell differ in more than the seed.
    """
    cells = [replace(c, task=task_of(c)) for c in published(table) if "." not in c.metric]
    if not cells:
        raise ValueError(f"{table} lists settings, not results; they are in conf/tuned/")
    done = newest_version([record for record in records if record.status == "ok"])
    return [_compared(cell, done) for cell in cells]


def newest_version(records: Sequence[Record]) -> list[Record]:
    """Return the records of each task's newest version, which others do not compare with."""
    newest: dict[str, int] = {}
    for record in records:
        newest[record.task] = max(newest.get(record.task, 0), record.task_version or 0)
    return [record for record in records if record.task_version == newest[record.task]]


def published_beside(record: Record) -> list[ComparedCell]:
    """Return the published cells that record is a run of, each with its value."""
    cells = [cell for cell in published() if "." not in cell.metric]
    return [found for cell in cells if (found := _compared(cell, [record])).ours]


def _compared(cell: Cell, records: Sequence[Record]) -> ComparedCell:
    found = [r for r in records if is_measured(r, cell)]
    if cell.method == "fp":
        return ComparedCell(cell, full_precision(found, cell.metric))
    own = [r for r in found if is_run(r, cell)]
    if TUNED in cell.setting.split():
        own = _best_rate(own, cell)
    ours = one_configuration(cell, own)
    return ComparedCell(cell, ours, other_numbers(own[0], cell) if ours else "")


def _best_rate(records: Sequence[Record], cell: Cell) -> list[Record]:
    """Return those of the learning rate with the best mean, as the paper has chosen its own."""
    by_rate: dict[Any, list[Record]] = {}
    for record in records:
        if cell.metric in record.metrics:
            by_rate.setdefault(fact(record, "recon.lr"), []).append(record)
    sign = 1 if all(r.higher_is_better for r in records) else -1
    means = {lr: sign * fmean(r.metrics[cell.metric] for r in by_rate[lr]) for lr in by_rate}
    return by_rate[max(means, key=means.__getitem__)] if means else []


def full_precision(records: Sequence[Record], metric: str) -> list[float]:
    """Return the metric of the network that records started from; nothing of several.

    One network has other last digits on another processor: it has their median.
    """
    held = [r for r in records if metric in r.fp_metrics]
    values = [r.fp_metrics[metric] for r in held]
    networks = {r.network for r in held}  # None of an old record, of which nothing is known
    one = len(set(values)) == 1 or (len(networks) == 1 and None not in networks)
    return [median(values)] if one else []


def one_configuration(cell: Cell, records: Sequence[Record]) -> list[float]:
    """Return the values of a cell's runs, one a seed.

    Raises:
        ValueError: when they differ in more than the seed; names what in.
    """
    found = [r for r in records if isfinite(r.metrics.get(cell.metric, nan))]
    unlike = differing(found) if found else {}
    if unlike or len({r.seed for r in found}) < len(found):
        told = "; ".join(f"{name} ({', '.join(values)})" for name, values in unlike.items())
        table = f"{cell.paper}/{cell.table}" if cell.paper else cell.table
        raise ValueError(
            f"several configurations fall into {table} {cell.model} {cell.task} {cell.method} "
            f"{cell.setting} {cell.bits}: {told or 'a seed twice'}; choose with --where"
        )
    return [r.metrics[cell.metric] for r in found]


def frame(joined: Sequence[ComparedCell]) -> pd.DataFrame:
    """Return one row a cell: names, ours, n, paper, difference, noise, and both ranks.

    A rank is the place among the methods of one model, task, setting, bits and metric, 1 the best,
    and missing where any of them has no run of ours.
    """
    rows = [
        {
            "model": j.cell.model,
            "task": j.cell.task,
            "method": j.cell.method,
            "setting": j.cell.setting,
            "bits": j.cell.bits,
            "metric": j.cell.metric,
            "ours": j.value,
            "n": len(j.ours),
            "paper": j.cell.value,
            "difference": None if j.value is None else j.value - j.cell.value,
            "noise": j.noise,
            "note": "; ".join(filter(None, (j.cell.note, j.note))),
        }
        for j in joined
    ]
    table = pd.DataFrame(rows)
    column = ["model", "task", "setting", "bits", "metric"]
    for _, group in table.groupby(column, sort=False):
        if len(group) < 2:
            continue
        ascending = group["metric"].iloc[0] in LOWER_IS_BETTER
        for name in ("ours", "paper"):
            if group["ours"].notna().all():
                ranks = group[name].astype(float).rank(ascending=ascending, method="min")
                table.loc[group.index, f"rank_{name}"] = ranks
    return table


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Return the join's cells as text."""
    return pd.DataFrame(
        {
            **{name: table[name] for name in ("model", "task", "method", "setting", "bits")},
            "metric": table["metric"],
            "ours": [_number(v) for v in table["ours"]],
            "seeds": table["n"],
            "paper": [_number(v) for v in table["paper"]],
            "difference": [
                _number(d, "+.2f") + (" ~" if noise else "")
                for d, noise in zip(table["difference"], table["noise"], strict=True)
            ],
            "note": table["note"],
        }
    )


def text(table: pd.DataFrame) -> str:
    """Return the join in Markdown, with how many orders agree."""
    lines = [markdown(as_text(table))]
    if "rank_ours" in table:
        column = ["model", "task", "setting", "bits", "metric"]
        ranked = table.dropna(subset=["rank_ours"]).groupby(column, sort=False)
        same = [bool((g["rank_ours"] == g["rank_paper"]).all()) for _, g in ranked]
        lines.append(f"\nmethods in the paper's order in {sum(same)} of {len(same)} columns")
    lines.append("\n~ within the standard deviation of our seeds")
    return "\n".join(lines)


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None or pd.isna(value) else f"{value:{form}}"
