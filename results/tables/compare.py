"""Two methods against each other: the difference on the same seeds, and on the same samples.

Runs are paired that share task, model, bits, seed and every setting but the method's own, which are
those below quant and recon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from results.records.outcomes import Outcomes
from results.records.record import Record
from results.records.selection import nearest
from results.tables.alike import by_seed, differing, measured_apart, same
from results.tables.formats import latex, markdown
from results.tables.leaderboard import rows_and_runs, width
from results.tables.paired_tests import mcnemar, mean_interval, metric_interval, metric_of

NUMBERS = ("first", "second", "difference", "low", "high", "b", "c", "p")
ALL = "all"  # stands for the seeds in the row of their mean
DIGITS = {"kl": 5}  # decimals where two do not tell methods apart
Runs = Sequence[Record]  # of one seed and method: several where a seed of its own differs
Pairs = dict[int, tuple[Runs, Runs]]


@dataclass
class Comparison:
    """What was found.

    Attributes:
        table: a row a seed and, of several, one for their mean: the cell, metric, seed and NUMBERS.
        remarks: what could not be compared, and what the methods differ in besides.
    """

    first: str
    second: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def table(self) -> pd.DataFrame:
        """The rows as a frame."""
        table = pd.DataFrame(self.rows).astype({"low": float, "high": float, "p": float})
        return table.astype({"b": "Int64", "c": "Int64"})


def compare(
    records: Sequence[Record],
    outcomes: Callable[[Record], Outcomes],
    first: str,
    second: str,
    by: Sequence[str] = (),
) -> Comparison:
    """Return how the method first does against second; outcomes finds those of a record's samples.

    Raises:
        ValueError: for an unknown method, when nothing can be paired, or as leaderboard does.
    """
    _check_methods(records, first, second)
    done = [r for r in records if r.status == "ok" and r.quant in (first, second)]
    if not done:
        raise ValueError(f"no run of {first} or {second} has finished")
    found = Comparison(first, second)
    for cell, pairs in _paired(found, *rows_and_runs(done, by)):
        own = {
            seed: (_outcomes(a, outcomes), _outcomes(b, outcomes)) for seed, (a, b) in pairs.items()
        }
        _tell_missing(found, cell, pairs, own)
        names = [next(iter(pairs.values()))[0][0].metric]
        names += [name for a, b in own.values() for name in a if name in b]
        for name in dict.fromkeys(map(str, names)):
            found.rows += _rows(cell, name, pairs, own)
    if not found.rows:
        reason = "; ".join(found.remarks) or "no two runs share task, model, bits and seed"
        raise ValueError(f"nothing of {first} and {second} can be compared: {reason}")
    found.remarks = list(dict.fromkeys(found.remarks))
    return found


def _outcomes(runs: Runs, outcomes: Callable[[Record], Outcomes]) -> Outcomes:
    """Return the outcomes of a seed's run; nothing of several, whose mean has none."""
    return outcomes(runs[0]) if len(runs) == 1 else {}


def _check_methods(records: Sequence[Record], first: str, second: str) -> None:
    if first == second:
        raise ValueError(
            f"compare {first} {second}: give two methods; python -m results ablation NAME sets the "
            "values of one setting side by side"
        )
    known = {record.quant for record in records}
    for method in (first, second):
        if method not in known:
            hint = nearest(method, known) or f"; there are {', '.join(sorted(known))}"
            raise ValueError(f"no record of the method {method}{hint}")


def _paired(
    found: Comparison, table: pd.DataFrame, runs: Sequence[Sequence[Record]]
) -> Iterator[tuple[dict[str, Any], Pairs]]:
    """Yield the cell and, by seed, both methods' runs, of each pair of cells that compare."""
    told = [str(c) for c in table.columns[3 : table.columns.get_loc("bits")]]
    rows = [(row, members) for row, members in zip(table.itertuples(), runs, strict=True)]
    texts: list[dict[str, Any]] = table[["task", "model", *told]].to_dict("records")  # type: ignore[assignment]
    cells = [text | {"bits": width(row)} for text, (row, _) in zip(texts, rows, strict=True)]
    for i, (left, left_runs) in enumerate(rows):
        for j, (right, right_runs) in enumerate(rows):
            if (left.quant, right.quant) != (found.first, found.second):
                continue
            if not all(same(cells[i][k], cells[j][k]) for k in cells[i]):
                continue
            cell = {k: cells[j][k] if v == "-" else v for k, v in cells[i].items()}
            where = " ".join(cell.values())
            if unlike := differing(left_runs[0], right_runs[0]):
                found.remarks.append(f"{where} not compared: they differ in {unlike}")
                continue
            mine, theirs = by_seed(left_runs), by_seed(right_runs)
            pairs: Pairs = {seed: (mine[seed], theirs[seed]) for seed in mine if seed in theirs}
            if not pairs:
                found.remarks.append(f"{where} not compared: no seed in common")
                continue
            of_both = {seed: [*a, *b] for seed, (a, b) in pairs.items()}
            apart = {seed: why for seed, both in of_both.items() if (why := measured_apart(both))}
            for seed, why in apart.items():
                found.remarks.append(f"{where} seed {seed} not compared: {why}")
                del pairs[seed], of_both[seed]
            if not pairs:
                continue
            if (count := len({r.network for both in of_both.values() for r in both} - {None})) > 1:
                found.remarks.append(f"{where}: its seeds are of {count} full-precision networks")
            if schedule := differing(left_runs[0], right_runs[0], own=True):
                found.remarks.append(f"{where}: {found.first} and {found.second} have {schedule}")
            if len(pairs) == 1:
                found.remarks.append(f"{where}: one seed, so no interval over seeds")
            yield cell, dict(sorted(pairs.items()))


def _tell_missing(
    found: Comparison,
    cell: dict[str, str],
    pairs: Pairs,
    own: dict[int, tuple[Outcomes, Outcomes]],
) -> None:
    where = " ".join(cell.values())
    for seed, held in own.items():
        for runs, outcomes in zip(pairs[seed], held, strict=True):
            if len(runs) > 1:
                found.remarks.append(
                    f"{where} seed {seed}: no test on samples, {runs[0].quant} has the mean of "
                    f"{len(runs)} runs, which differ in quant.seed"
                )
            elif not outcomes:
                found.remarks.append(
                    f"{where}: no test on samples, the run {runs[0].run_id} ({runs[0].quant} seed "
                    f"{seed}) keeps none of them; rerun=true computes it with them"
                )
        for name in held[0].keys() & held[1].keys():
            if len(held[0][name]) != len(held[1][name]):
                found.remarks.append(
                    f"{where} seed {seed}: no test on samples, there are {len(held[0][name])} and "
                    f"{len(held[1][name])} of them"
                )


def _rows(
    cell: dict[str, Any], metric: str, pairs: Pairs, own: dict[int, tuple[Outcomes, Outcomes]]
) -> list[dict[str, Any]]:
    """Return the rows of one metric."""
    rows = []
    for seed, (left, right) in pairs.items():
        a, b = (held.get(metric) for held in own[seed])
        first, second = _mean(left, metric, a), _mean(right, metric, b)
        if first is None or second is None:
            continue
        row = cell | {"metric": metric, "seed": str(seed)} | dict.fromkeys(NUMBERS)
        row |= _numbers(first, second)
        if a is not None and b is not None and len(a) == len(b):
            row["low"], row["high"] = metric_interval(a, b, metric) or (None, None)
            if a.dtype == b.dtype == bool:
                row["b"], row["c"], row["p"] = mcnemar(a, b)
        rows.append(row)
    if len(rows) > 1:
        mean = cell | {"metric": metric, "seed": ALL} | dict.fromkeys(NUMBERS)
        mean |= _numbers(fmean(r["first"] for r in rows), fmean(r["second"] for r in rows))
        mean["low"], mean["high"] = mean_interval([r["difference"] for r in rows]) or (None, None)
        rows.append(mean)
    return rows


def _mean(runs: Runs, metric: str, kept: NDArray[Any] | None) -> float | None:
    """Return the mean of metric over a seed's runs, None where they lack it.

    kept are the outcomes of a seed's one run, which give it where its record does not.
    """
    values = [run.metrics[metric] for run in runs if metric in run.metrics]
    if len(values) == len(runs):
        return fmean(values)
    return None if kept is None else metric_of(kept, metric)


def _numbers(first: float, second: float) -> dict[str, float]:
    return {"first": first, "second": second, "difference": first - second}


def render(found: Comparison, form: str) -> str:
    """Return the comparison as markdown or latex text, or its bare rows as csv."""
    if form == "csv":
        return found.table.to_csv(index=False).rstrip("\n")
    return latex(_shown(found)) if form == "latex" else _text(found)


def _shown(found: Comparison) -> pd.DataFrame:
    """Return the rows as text."""
    table = found.table
    shown = table[[c for c in table.columns if c not in NUMBERS]].copy()
    digits = [DIGITS.get(metric, 2) for metric in table["metric"]]
    for title, name in ((found.first, "first"), (found.second, "second")):
        shown[title] = [f"{v:.{n}f}" for v, n in zip(table[name], digits, strict=True)]
    shown["difference"] = [f"{v:+.{n}f}" for v, n in zip(table["difference"], digits, strict=True)]
    shown["95 % interval"] = [
        "-" if pd.isna(low) else f"{low:+.{n}f} to {high:+.{n}f}"
        for low, high, n in zip(table["low"], table["high"], digits, strict=True)
    ]
    for name in ("b", "c", "p"):
        shown[name] = ["-" if pd.isna(v) else f"{v:.3g}" for v in table[name]]
    return shown


def _text(found: Comparison) -> str:
    lines = [
        f"difference: {found.first} - {found.second}. Interval: Student's t, of a seed's row "
        "over its evaluation samples, of the row all over seeds.",
        f"b, c: samples that only {found.first}, only {found.second} has right; p: McNemar's exact "
        "test. Seeds share their samples: their p are not pooled.",
        *found.remarks,
    ]
    return "\n\n".join([markdown(_shown(found)), *lines])
