"""Notebook's view of records: frames and figures where the command line prints and writes.

A frame of runs has a row a run and carries the folder that it was read from, so that what pandas
leaves of it (`runs[runs.bits == 3]`) can be handed on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from results.notebook_errors import in_words_of_python
from results.records.dropped import Dropped, told
from results.records.off import left_out
from results.records.reading import DEFAULT, outcomes_in, read, with_units
from results.records.record import Record
from results.records.selection import flatten

if TYPE_CHECKING:
    from results.plots.shown import Figures

PLACE = "records"  # of frame.attrs: the folder
INDEX = "run_id"
# Of a record, in the frame's order; metrics and settings follow by dotted name.
FIRST = (
    "model", "task", "quant", "bits", "seed", "status", "metric", "value", "fp_value", "delta",
    "seconds", "peak_memory_gib",
)  # fmt: skip
LAST = (
    "higher_is_better", "task_version", "quantized_share", "average_bits", "device",
    "precision", "processor", "threads", "network", "commit", "started", "error",
)  # fmt: skip
Runs = pd.DataFrame | str | Path | None


def load(path: str | Path | None = None) -> pd.DataFrame:
    """Return the runs recorded in path, one row a run, oldest first; the index is the run's id.

    path is a folder of records or a .jsonl file with one a line; without it, that of run.py.
    Columns are what a run was (model, task, quant, bits, seed, status), its result in the metric's
    own unit (value, fp_value of full precision, delta = value - fp_value, metrics.NAME,
    fp_metrics.NAME), its cost (seconds; peak_memory_gib in GiB), every setting by its dotted name
    (recon.iters), and where it ran. What a run has no value of is missing. Rows that can't be read
    are left out with one warning that names them.

    >>> runs = load("results/readme.jsonl")
    >>> sorted(runs[runs.bits == 4].quant.unique())
    ['adaquant', 'adaround', 'flexround', 'rtn']

    Raises:
        ValueError: when there is no record in path, or none that can be read.
    """
    place, dropped = Path(DEFAULT if path is None else path), Dropped()
    records = read(place, dropped=dropped)
    if dropped:
        warnings.warn(f"left out of {place}: {told(dropped)}", stacklevel=2)
    known: dict[int, dict[str, Any]] = {}  # by id: of equal settings there is one object
    rows = [_row(record, known) for record in records]
    names = dict.fromkeys(name for row in rows for name in row)
    metrics = [name for name in names if name.startswith(("metrics.", "fp_metrics."))]
    settings = [name for name in names if name not in {*FIRST, *LAST, *metrics, INDEX}]
    frame = pd.DataFrame(rows, columns=[INDEX, *FIRST, *sorted(metrics), *sorted(settings), *LAST])
    frame = frame.set_index(INDEX)
    frame.attrs[PLACE] = str(place)
    return frame


def _row(record: Record, known: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return one row of the frame; known keeps settings that were flattened before."""
    row: dict[str, Any] = {}
    for name, value in record.settings.items():
        if isinstance(value, dict):
            if id(value) not in known:
                known[id(value)] = flatten(value, f"{name}.")
            row |= known[id(value)]
        else:
            row[name] = value
    row |= dict(left_out(record.settings))
    row |= {f"metrics.{name}": value for name, value in record.metrics.items()}
    row |= {f"fp_metrics.{name}": value for name, value in record.fp_metrics.items()}
    row |= {name: getattr(record, name) for name in (INDEX, *FIRST, *LAST) if name != "delta"}
    if record.value is not None and record.fp_value is not None:
        row["delta"] = record.value - record.fp_value
    return row


def units(runs: Any = None) -> pd.DataFrame:
    """Return the units of reconstruction of runs, one row a unit, indexed by run and unit.

    runs is a frame of `load` or a part of it, one row of it, a path, or what `flexround.quantize`
    returns. Columns: error_before and error_after (mean over calibration samples of the squared
    error, summed over channels), seconds, peak_memory_gib (GiB), cost.parameters, cost.state_bytes
    (bytes), cost.flops, layers (bits by name), curve ([iteration, loss] pairs) and what else a
    record keeps.

    Raises:
        ValueError: when there is no record, or none with units.
    """
    reports = getattr(runs, "units", None)
    if isinstance(reports, Sequence):  # of a network quantized in memory
        held = {"": [asdict(report) for report in reports if is_dataclass(report)]}  # type: ignore[arg-type]
    else:
        if isinstance(runs, pd.Series):
            runs = _frame_of(runs)
        place, rows = _chosen(runs)
        held = {record.run_id: record.blocks for record in with_units(place, rows)}
    found = [
        {INDEX: run, "unit": unit["name"]} | _flat_unit(unit)
        for run, own in held.items()
        for unit in own
    ]
    if not found:
        raise ValueError(f"none of the {len(held)} runs keeps its units of reconstruction")
    return pd.DataFrame(found).set_index([INDEX, "unit"])


def _frame_of(row: pd.Series[Any]) -> pd.DataFrame:
    frame = row.to_frame().T
    frame.attrs = dict(row.attrs)
    return frame


def _flat_unit(unit: Mapping[str, Any]) -> dict[str, Any]:
    """Return a unit's report with its cost by dotted name; layers and curves stay whole."""
    flat = {name: value for name, value in unit.items() if name not in ("name", "cost")}
    return flat | {f"cost.{name}": value for name, value in (unit.get("cost") or {}).items()}


def leaderboard(runs: Runs = None, by: Sequence[str] = ()) -> pd.DataFrame:
    """Return one row a configuration, over its seeds: mean, median, std, n, fp, delta, ...

    runs is a frame of `load` or a part of it, or a path; by are settings that tell rows apart, as
    --by of `python -m results`, which prints the same numbers.

    >>> board = leaderboard("results/readme.jsonl")
    >>> {"task", "model", "quant", "bits", "mean", "std", "n", "delta"} <= set(board.columns)
    True

    Raises:
        ValueError: when runs that differ in more than their seed fall into one row; names what
            they differ in.
    """
    from results.tables.leaderboard import leaderboard as table

    with in_words_of_python():
        return table(_chosen(runs)[1], _names(by))


def compare(first: str, second: str, runs: Runs = None, by: Sequence[str] = ()) -> pd.DataFrame:
    """Return how the method first does against second on the same seeds and samples.

    A row a seed and one for their mean: difference = first - second, its 95 % interval from low to
    high, and of right or wrong answers McNemar's b, c and p. What could not be compared stands in
    frame.attrs["remarks"].

    Raises:
        ValueError: for an unknown method, or when nothing can be paired.
    """
    from results.tables.compare import compare as compared

    place, records = _chosen(runs)
    with in_words_of_python():
        found = compared(records, outcomes_in(place), first, second, _names(by))
    table = found.table
    table.attrs["remarks"] = found.remarks
    return table


def ablation(setting: str, runs: Runs = None, by: Sequence[str] = ()) -> pd.DataFrame:
    """Return the values of one setting side by side, all others held: a row for each value.

    setting is a dotted name, such as recon.iters, or a group, such as quant. What changed along
    with it stands in frame.attrs["remarks"].

    Raises:
        ValueError: for a setting that no record has or that has one value, and when no two runs
            differ in it alone.
    """
    from results.tables.ablation import ablation as varied

    _, records = _chosen(runs)
    with in_words_of_python():
        found = varied(records, setting, _names(by))
    table = found.table
    table.attrs["remarks"] = found.remarks
    return table


def plot(kind: str, runs: Runs = None, by: Sequence[str] = ()) -> Figures:
    """Return the figures of a kind by name: bits, samples, blocks, curves or cost.

    A notebook shows them; `.save(folder)` writes them. Each is a matplotlib Figure.

    Raises:
        ValueError: for another kind, when there is nothing to draw, or when different
            configurations fall into one point.
    """
    try:
        from results.plots import OF_UNITS, figures
        from results.plots.shown import Figures
    except ModuleNotFoundError as error:
        from flexround.utils.packages import missing_package

        raise ValueError(missing_package(error)) from error

    place, records = _chosen(runs)
    if kind in OF_UNITS:
        records = with_units(place, records)
    with in_words_of_python():
        return Figures(figures(kind, records, _names(by)))


def _names(by: Sequence[str]) -> Sequence[str]:
    return [by] if isinstance(by, str) else by


def _chosen(runs: Runs) -> tuple[Path, list[Record]]:
    """Return where the records of runs lie, and the records without their units.

    Raises:
        ValueError: when a frame does not say where its runs were read, or has none of theirs.
    """
    if not isinstance(runs, pd.DataFrame):
        place = Path(DEFAULT if runs is None else runs)
        return place, read(place)
    if PLACE not in runs.attrs or not _are_names(runs.index):
        raise ValueError(
            "this frame does not say where its runs were read: give one of results.load(), or rows "
            "of it with their index; pandas.concat and reset_index lose it"
        )
    if runs.empty:
        raise ValueError("this frame has no rows; it leaves no run")
    names = set(runs.index)
    place = Path(runs.attrs[PLACE])
    found = [record for record in read(place, dropped=Dropped()) if record.run_id in names]
    if len(names - {record.run_id for record in found}):
        raise ValueError(f"some of the frame's runs are no longer in {place}; load it again")
    return place, found


def _are_names(index: Iterable[Any]) -> bool:
    return all(isinstance(name, str) for name in index)
