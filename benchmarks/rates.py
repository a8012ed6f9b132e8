"""Rates by their error on held-out samples: what `recon=fast`'s were chosen by.

`python -m benchmarks.rates --results-dir DIR` reads the records of runs with recon.held_out, which
a sweep over iterations and rates has left, and prints a row for each method, kind of model,
iterations and rates: the mean over networks and seeds of a run's error over that of the best row
of its iterations, and over that of the longest schedule. A run's error is the geometric mean of its
units' errors on samples that calibration did not see; no metric of a test set has a part in it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from results.records.record import Record
from results.records.searches import held_out_error
from results.records.store import Store

RATES = ("recon.lr", "quant.lr_v", "quant.lr_range", "quant.lr_ends", "recon.act_lr")
SETTING = ("recon.iters", "recon.act_iters", "recon.schedule")
Key = tuple[Any, ...]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rates", description=__doc__)
    parser.add_argument("--results-dir", type=Path, required=True)
    print("\n".join(table(Store(parser.parse_args(argv).results_dir).load())))


def table(records: Iterable[Record]) -> list[str]:
    """Return the lines of a markdown table, the best row of each kind and iterations in bold.

    Raises:
        ValueError: when no record has an error on held-out samples.
    """
    found: dict[Key, dict[Key, dict[Key, float]]] = {}  # by method and kind, row, network and seed
    for record in records:
        own = held_out_error(record)
        if own is not None:
            row = tuple(_fact(record, name) for name in (*SETTING, *RATES))
            kind = record.quant, _kind(record)
            found.setdefault(kind, {}).setdefault(row, {})[_problem(record)] = own
    if not found:
        raise ValueError("no finished run has an error on held-out samples; give recon.held_out=")
    head = ["method", "kind", *(name.partition(".")[2] for name in (*SETTING, *RATES))]
    lines = ["| " + " | ".join((*head, "runs", "to the best", "to the longest")) + " |"]
    lines.append("|---" * (len(head) + 3) + "|")
    for kind, rows in sorted(found.items()):
        longest = _best(rows, max(_length(row) for row in rows))
        for row in sorted(rows, key=str):
            best = _best(rows, _length(row))
            mark = "**" if row == best else ""
            cells = [*kind, *("-" if value is None else value for value in row), len(rows[row])]
            ratios = [_ratio(rows[row], rows[other]) for other in (best, longest)]
            lines.append(
                "| " + " | ".join(map(str, cells + [f"{mark}{r}{mark}" for r in ratios])) + " |"
            )
    return lines


def _best(rows: dict[Key, dict[Key, float]], length: Key) -> Key:
    """Return the row of so many iterations with the lowest error over what most rows have run."""
    own = {row: runs for row, runs in rows.items() if _length(row) == length}
    most = max(len(runs) for runs in own.values())
    whole = {row: runs for row, runs in own.items() if len(runs) == most}
    return min(whole, key=lambda row: fmean(map(math.log, whole[row].values())))


def _length(row: Key) -> Key:
    return tuple(-1 if value is None else value for value in row[:2])


def _ratio(own: dict[Key, float], other: dict[Key, float]) -> str:
    """Return the geometric mean of own's errors over other's, on what both have run."""
    both = own.keys() & other.keys()
    if not both:
        return "-"
    return f"{math.exp(fmean(math.log(own[name] / other[name]) for name in both)):.3f}"


def _fact(record: Record, name: str) -> Any:
    group, _, key = name.partition(".")
    node = record.settings.get(group)
    return node.get(key) if isinstance(node, dict) else None


def _kind(record: Record) -> str:
    """Return vision, causal or encoder; with the preset of step sizes where any are learned."""
    kind = str(record.settings["model"].get("kind") or "vision")
    steps = _fact(record, "recon.act_steps")
    return kind if steps in (None, "start") else f"{kind}, {steps}"


def _problem(record: Record) -> Key:
    """Return what a run's error depends on besides the row that it is in."""
    name = record.settings["model"].get("name", record.model)
    return name, record.task, record.bits, record.seed


if __name__ == "__main__":
    main()
