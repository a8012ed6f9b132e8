"""The leaderboard as one HTML file that needs nothing else: tables, plots and the runs behind them.

page.html is the template; page.css and SCRIPTS are put into it. Everything that comes from records
is escaped by the template or set as text by the script, and the page's own policy lets no other
script run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from flexround.utils.atomic_files import write_whole
from results.page.runs import moment, runs_of
from results.page.sections import Beside, claims_of, ranking_of, searches_of
from results.page.svg_chart import Chart, charts
from results.page.units import BYTES, units_of
from results.records.reading import DEFAULT
from results.records.record import Record
from results.tables.formats import MARK, PLUS_MINUS
from results.tables.leaderboard import CELL, mean_text, rows_and_runs, width

HERE = Path(__file__).resolve().parent
# In their order: the last one starts what the others define.
SCRIPTS = ("shared.js", "runs.js", "compare.js", "page.js")
UNITS = '<script type="application/json" id="units">'
PAGE_BYTES = 9_900_000  # beyond which a page has no units
NUMBERS = ("mean", "delta", "fp", "n", "failed")
# Key, heading, what it says; the settings that tell cells apart stand after the first two, and the
# metric's name above its values.
COLUMNS = (
    ("model", "Model", "the network"),
    ("quant", "Method", "how its weights were quantized"),
    ("width", "Bits", "W: of the weights, A: of the activations"),
    (
        "mean",
        "",
        f"mean {PLUS_MINUS} standard deviation over seeds; {MARK} where they "
        "differ in threads, processor, torch or network",
    ),
    ("delta", "vs. FP", "difference to full precision"),
    ("fp", "FP", "full precision"),
    ("n", "Seeds", "runs that ended well"),
    ("failed", "Failed", "runs that failed"),
)


@dataclass(frozen=True)
class Cell:
    """What a row shows in one column: its text, the number it is sorted by, whether it is bad."""

    text: str
    number: str = ""
    bad: bool = False


@dataclass(frozen=True)
class Table:
    """A task's table and plots.

    Attributes:
        columns: (key, heading, what it says) of each column; the first is the model.
        rows: the cells, and the place of the row's runs in the page's list.
    """

    task: str
    metric: str
    better: str
    columns: Sequence[tuple[str, str, str]]
    rows: Sequence[tuple[int, Sequence[Cell]]]
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Folder:
    """Where the records lie.

    Attributes:
        path: relative to the page.
        option: what the command line of another view must say of it, nothing for the default one.
        is_file: whether they are lines of one file, in which no run has a file of its own.
    """

    path: str
    option: str = ""
    is_file: bool = False

    @classmethod
    def of(cls, folder: Path, out: Path) -> Folder:
        """Return what a page at out says of folder."""
        folder = folder.expanduser()
        path = os.path.relpath(folder.resolve(), out.resolve().parent)
        same = folder.resolve() == DEFAULT.resolve()
        option = "" if same else shlex.join(["--results-dir", str(folder)])
        return cls(path, option, folder.is_file())

    @property
    def link(self) -> str:
        """The path as a part of an address."""
        return "/".join(quote(part) for part in Path(self.path).parts)

    def of_run(self, run_id: str) -> str:
        """Return the address of the file that has a run's record."""
        return self.link if self.is_file else f"{self.link}/{quote(run_id)}.json"


def write(
    records: Sequence[Record],
    by: Sequence[str],
    folder: Path,
    out: Path,
    beside: Beside | None = None,
) -> str:
    """Write the page of records, which lie in folder, to out; return what was written.

    Raises:
        ValueError: when out can't be written, or as leaderboard does.
    """
    text = page(records, by, Folder.of(folder, out), beside)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, text.encode())
    except OSError as error:
        raise ValueError(f"--out {out}: {error.strerror}; give another, or make room") from error
    return f"{len(records)} runs: {out}"


def page(
    records: Sequence[Record],
    by: Sequence[str],
    folder: str | Folder,
    beside: Beside | None = None,
) -> str:
    """Return the page's HTML; folder is where it finds the records' files, as a relative path.

    Raises:
        ValueError: as leaderboard does.
    """
    folder = Folder(folder) if isinstance(folder, str) else folder
    beside = beside or Beside()
    frame, runs = rows_and_runs(records, by)
    shown = {record.run_id for members in runs for record in members}
    script = Markup("".join((HERE / name).read_text() for name in SCRIPTS))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = _environment().get_template("page.html").render(
        tables=_tables(frame, runs),
        options={
            "task": list(frame["task"].unique()),
            "model": list(frame["model"].unique()),
            "quant": list(frame["quant"].unique()),
            "width": _widths(frame),
        },
        data={
            "folder": None if folder.is_file else folder.link, "option": folder.option,
            **runs_of(runs),
        },
        ranking=ranking_of(records, by),
        searches=searches_of(beside.searches),
        claims=claims_of(beside.claims),
        numbers=("width", *NUMBERS),
        strays=[(r, folder.of_run(r.run_id)) for r in records if r.run_id not in shown],
        count=len(records),
        newest=moment(max(record.started for record in records)),
        style=Markup((HERE / "page.css").read_text()),
        script=script,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    )  # fmt: skip
    # What the rest leaves is the units': their place is the last element that opens so.
    before, opened, after = text.rpartition(UNITS)
    units = units_of(beside.units, min(BYTES, PAGE_BYTES - len(text.encode())))
    return f"{before}{opened}{htmlsafe_json_dumps(units, separators=(',', ':'))}{after}"


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return made


def _widths(frame: pd.DataFrame) -> list[str]:
    widest = frame.sort_values(["bits", "act_bits"], ascending=False)
    return list(dict.fromkeys(width(row) for row in widest.itertuples()))


def _tables(frame: pd.DataFrame, runs: Sequence[Sequence[Record]]) -> list[Table]:
    names = list(frame.columns[: frame.columns.get_loc("bits")])
    told = [name for name in dict.fromkeys(names) if name not in CELL]
    styles = {quant: number for number, quant in enumerate(frame["quant"].unique())}
    whole = frame.assign(width=[width(row) for row in frame.itertuples()], place=range(len(frame)))
    tables = []
    for task, part in whole.groupby("task", sort=False):
        rows: list[dict[Any, Any]] = part.to_dict("records")
        # A setting that no run of this task has tells none of them apart.
        apart = [name for name in told if any(row[name] != "-" for row in rows)]
        facts = [record for row in rows for record in runs[row["place"]]]
        better = next((r.higher_is_better for r in facts if r.higher_is_better is not None), True)
        metric = next((row["metric"] for row in rows if pd.notna(row["metric"])), "value")
        columns = [*COLUMNS[:2], *((name, name, "a setting") for name in apart), *COLUMNS[2:]]
        tables.append(
            Table(
                task=str(task),
                metric=metric,
                better="higher is better" if better else "lower is better",
                columns=[(key, heading or metric, told) for key, heading, told in columns],
                rows=[(row["place"], [_cell(row, key) for key, *_ in columns]) for row in rows],
                charts=charts(rows, apart, styles, better),
            )
        )
    return tables


def _cell(row: dict[str, Any], key: str) -> Cell:
    if key == "width":
        acts = 0.0 if pd.isna(row["act_bits"]) else row["act_bits"]
        return Cell(row["width"], f"{row['bits'] + acts / 100}")
    value = row[key]
    if key not in NUMBERS:
        return Cell(str(value))
    if pd.isna(value):
        return Cell("failed", bad=True) if key == "mean" else Cell("-")
    texts = {"mean": mean_text(row), "delta": f"{value:+.2f}", "fp": f"{value:.2f}"}
    return Cell(texts.get(key, str(value)), repr(value), key == "failed" and value > 0)
