"""Settings that methods are ranked in, and the runs of each method there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log
from statistics import fmean
from typing import Any

from results.records.record import Record
from results.tables.alike import by_seed, differing, measured_apart, same
from results.tables.leaderboard import rows_and_runs, width
from results.tables.paired_tests import PERPLEXITY

ABSENT = "-"  # of a method that has no such setting, and meets every value of it
Names = tuple[str, ...]
Cell = tuple[str, Names, Sequence[Record]]  # method, setting, runs
Runs = dict[str, dict[int, list[Record]]]  # of a setting: by method and seed


@dataclass
class Setting:
    """One setting: its names, and the runs of each method there, by seed."""

    names: Names
    runs: Runs

    def values(self, methods: Sequence[str]) -> list[float] | None:
        """Return the methods' means, larger ones better; None where no seed is in all.

        Of perplexities they are of the logarithms. A seed whose runs are of several full-precision
        networks, or of several data, is left out.
        """
        if not all(method in self.runs for method in methods):
            return None
        common = set.intersection(*(set(self.runs[method]) for method in methods))
        seeds = [
            seed for seed in sorted(common)
            if not measured_apart([run for m in methods for run in self.runs[m][seed]])
        ]  # fmt: skip
        if not seeds:
            return None
        return [fmean(_height(self.runs[method][seed]) for seed in seeds) for method in methods]


def _height(runs: Sequence[Record]) -> float:
    """Return the mean of a seed's runs, larger ones better."""
    sign = 1 if runs[0].higher_is_better else -1
    if runs[0].metric == PERPLEXITY:  # what differs is a share of it
        return sign * fmean(log(run.value or 1.0) for run in runs)
    return sign * fmean(run.value or 0.0 for run in runs)


def settings_of(done: Sequence[Record], by: Sequence[str], remarks: list[str]) -> Iterator[Setting]:
    """Yield the settings that two methods or more have runs of; tell remarks what takes no part."""
    table, runs = rows_and_runs(done, by)
    told = [str(c) for c in table.columns[3 : table.columns.get_loc("bits")]]
    rows: list[dict[Any, Any]] = table.to_dict("records")
    cells: list[Cell] = [
        (str(row.quant), (*(str(facts[k]) for k in ("task", "model", *told)), width(row)), members)
        for row, facts, members in zip(table.itertuples(), rows, runs, strict=True)
    ]
    groups: dict[Names, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell[1][:2], []).append(cell)
    for group in groups.values():
        keys = dict.fromkeys(names for _, names, _ in group)
        for names in keys:
            if ABSENT in names and any(_refines(other, names) for other in keys):
                continue
            for found in _runs(names, group, remarks):
                remarks += _measured_apart(names, found)
                yield Setting(names, found)


def _runs(names: Names, cells: Sequence[Cell], remarks: list[str]) -> Iterator[Runs]:
    """Yield the runs of a setting by method and seed, of methods that compare with one another.

    Tell of each that compares with no other in what it differs.
    """
    alike: list[dict[str, Sequence[Record]]] = []
    for quant, own, members in cells:
        if not all(same(a, b) for a, b in zip(own, names, strict=True)):
            continue
        for methods in alike:
            if not any(differing(runs[0], members[0]) for runs in methods.values()):
                methods.setdefault(quant, members)
                break
        else:
            alike.append({quant: members})
    alike.sort(key=len, reverse=True)  # the largest first, those of as many as they come
    for methods in alike:
        if len(methods) == 1 and methods is not alike[0]:
            ((quant, members),) = methods.items()
            unlike = differing(next(iter(alike[0].values()))[0], members[0])
            where = " ".join(names)
            if quant not in alike[0]:
                remarks.append(f"{where} without {quant}: it differs in {unlike}")
        elif len(methods) > 1:
            yield {quant: by_seed(runs) for quant, runs in methods.items()}


def _measured_apart(names: Names, runs: Runs) -> Iterator[str]:
    """Yield the seeds of a setting whose runs do not compare, though their settings do."""
    for seed in sorted(set().union(*runs.values())):
        if why := measured_apart([run for own in runs.values() for run in own.get(seed, ())]):
            yield f"{' '.join(names)} seed {seed}: {why}; those are not compared"


def _refines(other: Names, names: Names) -> bool:
    """Return whether other says all that names does, and more."""
    return other != names and all(b in (ABSENT, a) for a, b in zip(other, names, strict=True))
