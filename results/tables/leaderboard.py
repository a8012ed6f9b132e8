"""The leaderboard, a pure function of records: rows are models and methods, columns bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan
from statistics import fmean, median, stdev
from typing import Any

import pandas as pd

from results.records.record import Record
from results.records.selection import ABSENT, check_known, fact, spelled, value_of
from results.tables.cell import BITS, bits_asked, differing, is_like
from results.tables.formats import MARK, PLUS_MINUS, latex, markdown
from results.tables.mixed import mixed, network_of, remarks

CELL = ["task", "model", "quant"]
OWN = (*CELL, "bits", "act_bits")  # columns of every table
# Settings that become a column by themselves where runs of one cell differ in them.
TOLD_APART = (
    "recon.act_steps", "act_stem_bits", "kv_bits", "granularity._target_", "group_size",
    "grid._target_", BITS,
    "symmetric", "recon.unit", "recon.loss", "recon.last_loss", "recon.start", "transform._target_",
    "recon.e2e_iters", "task.begin_with_bos", "checkpoint", "task_version", "metric",
)  # fmt: skip
FORMATS = ("markdown", "csv", "latex", "html")


def leaderboard(
    records: Sequence[Record], by: Sequence[str] = (), apart: bool = False
) -> pd.DataFrame:
    """Return one row a cell: its names, by, bits, act_bits, metric, what `numbers` says.

    The settings of TOLD_APART join by where runs of one cell differ in them. std is over seeds and
    missing for fewer than two. Tasks, models and methods stand in the order of
    their first runs. With apart, as of one sweep, any other setting in which they differ joins too.

    Raises:
        ValueError: when runs that differ in more than their seed fall into one cell, without
            apart; names what they differ in.
    """
    return rows_and_runs(records, by, apart)[0]


def rows_and_runs(
    records: Sequence[Record], by: Sequence[str] = (), apart: bool = False
) -> tuple[pd.DataFrame, list[list[Record]]]:
    """Return the leaderboard and, row by row, the runs that it is made of.

    Raises:
        ValueError: as leaderboard does.
    """
    for name in by:
        check_known(records, name, f"--by {name}")
    by, cells = _cells(records, by, apart)
    names = [*CELL, *by, "bits", "act_bits"]
    # Together what belongs together, each in the order of its first run.
    first = [{part: i for i, part in enumerate(dict.fromkeys(p))} for p in zip(*cells, strict=True)]
    places = len(CELL) + len(by)
    keys = sorted(cells, key=lambda key: [first[i][key[i]] for i in range(places)])
    rows = [dict(zip(names, key, strict=True)) | numbers(cells[key]) for key in keys]
    return pd.DataFrame(rows).astype({"act_bits": float}), [cells[key] for key in keys]


def numbers(members: Sequence[Record]) -> dict[str, Any]:
    """Return what runs that differ in their seed have found: metric, mean, median, std, n, fp, ...

    delta is mean - fp; failed counts the runs that failed; mixed says which conditions that no
    setting names differ between them (`results.tables.mixed`), network of which one they are.
    """
    values = [r.value for r in members if r.value is not None]
    fps = [r.fp_value for r in members if r.fp_value is not None]
    mean = fmean(values) if values else None
    fp = fmean(fps) if fps else None
    return {
        "metric": next((r.metric for r in members if r.metric), None),
        "mean": mean,
        "median": median(values) if values else None,
        "std": stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "fp": fp,
        "delta": None if mean is None or fp is None else mean - fp,
        "failed": sum(r.status == "failed" for r in members),
        "network": network_of(members) or nan,  # as what has no mean or deviation
        "mixed": mixed(members) or nan,
    }


Cells = dict[tuple[Any, ...], list[Record]]


def _cells(records: Sequence[Record], by: Sequence[str], apart: bool) -> tuple[list[str], Cells]:
    """Return by with what had to join it, and the records of each cell.

    average_bits joins where layers have bits of their own: the column of their others says less.
    """
    names = [name for name in by if name not in OWN]
    if BITS not in names and any(r.bits_per_layer for r in records):
        names.append(BITS)
    asked: list[str] = []  # what only the caller can tell runs apart by, from the first conflict on
    first: tuple[tuple[Any, ...], dict[str, list[str]]] = (), {}
    while True:
        cells: Cells = {}
        for record in records:
            own = {BITS: bits_asked(record)}
            values = (own[name] if name in own else value_of(record, name) for name in names)
            told = ("-" if value is ABSENT else spelled(value) for value in values)
            cell = (record.task, record.model, record.quant)
            key = (*cell, *told, record.bits, fact(record, "act_bits"))
            cells.setdefault(key, []).append(record)
        for key, members in cells.items():
            done = [r for r in members if r.status == "ok"]
            # A failed attempt with other settings must not hide what succeeded.
            cells[key] = done + [r for r in members if r.status == "failed" and is_like(r, done)]
        conflicts = {key: found for key, members in cells.items() if (found := differing(members))}
        if not conflicts:
            if asked and not apart:
                raise _two_in_one_cell(*first, asked)
            return names, cells
        joining = [
            n for n in TOLD_APART if n not in names and any(n in c for c in conflicts.values())
        ]
        if not joining:  # go on, so that all that has to be said is said at once
            conflict = next(iter(conflicts.items()))
            first = first if asked else conflict
            joining = [next(iter(conflict[1]))]
            asked += joining
        names.append(joining[0])


def _two_in_one_cell(
    key: tuple[Any, ...], differing: dict[str, list[str]], asked: list[str]
) -> ValueError:
    told = "; ".join(f"{name} ({', '.join(values)})" for name, values in differing.items())
    *names, bits, act_bits = key
    cell = " ".join(map(str, names)) + f" {bits}" + (f"/{act_bits}" if act_bits else "")
    by = " ".join(f"--by {name}" for name in asked)
    return ValueError(
        f"different configurations fall into the cell {cell} bit: {told}; "
        f"keep one with --where {asked[0]}=VALUE or tell them apart with {by}"
    )


def mean_text(row: dict[Any, Any]) -> str:
    """Return a row's mean, with its deviation where there is one, marked where runs are mixed."""
    deviation = f" {PLUS_MINUS} {row['std']:.2f}" if row["n"] > 1 else ""
    return f"{row['mean']:.2f}{deviation}{MARK if pd.notna(row['mixed']) else ''}"


def _cell_text(row: Any) -> str:
    if not row.n:
        return "failed"
    text = mean_text(row._asdict())
    if pd.notna(row.delta):
        text += f" ({row.delta:+.2f})"
    return text + (f", {row.failed} failed" if row.failed else "")


def width(row: Any) -> str:
    """Return a row's bits as the field writes them: W4, or W4A8."""
    return f"W{row.bits}" + (f"A{row.act_bits:.0f}" if pd.notna(row.act_bits) else "")


def text_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells as a table of text, bit widths as columns; absent ones are a dash."""
    rows = [
        c
        for c in cells.columns[: cells.columns.get_loc("bits")]
        if cells[c].nunique() > 1 or c != "task"
    ]
    texts = cells.assign(
        text=[_cell_text(row) for row in cells.itertuples()],
        width=[width(row) for row in cells.itertuples()],
    )
    order = texts[rows].drop_duplicates()
    widths = texts.sort_values(["bits", "act_bits"], ascending=False)["width"].drop_duplicates()
    wide = texts.pivot(index=rows, columns="width", values="text")
    wide = wide.reindex(pd.MultiIndex.from_frame(order))[list(widths)]
    fp = cells.groupby(rows, sort=False)["fp"].mean()
    wide.insert(0, "FP", [f"{fp[i]:.2f}" if pd.notna(fp[i]) else "-" for i in wide.index])
    return wide.fillna("-").reset_index()


def caption(cells: pd.DataFrame) -> str:
    """Return what the numbers of the table are, and which of them mix what decides last bits."""
    metrics = ", ".join(
        f"{task}: {' or '.join(names.unique())}"
        for task, names in cells.dropna(subset="metric").groupby("task")["metric"]
    )
    first = (
        f"{metrics}; mean {PLUS_MINUS} standard deviation over seeds where there are several "
        "(difference to full precision, FP)"
    )
    return "\n\n".join([first, *remarks(cells)])


def render(cells: pd.DataFrame, form: str) -> str:
    """Return the leaderboard as markdown, latex or html text, or the bare cells as csv.

    Raises:
        ValueError: for another format.
    """
    makers: dict[str, Callable[[], str]] = {
        "markdown": lambda: f"{markdown(text_table(cells))}\n\n{caption(cells)}",
        "csv": lambda: cells.to_csv(index=False).rstrip("\n"),
        "latex": lambda: latex(text_table(cells)),
        "html": lambda: text_table(cells).to_html(index=False),
    }
    if form not in makers:
        raise ValueError(f"--format {form}: give one of {', '.join(makers)}")
    return makers[form]()
