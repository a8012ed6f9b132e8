"""Which runs of two methods compare: equal in everything but what is the methods' own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from results.records.off import TARGET
from results.records.record import Record
from results.records.selection import facts
from results.tables.cell import SEEDS
from results.tables.mixed import mixed


def measured_apart(runs: Sequence[Record]) -> str:
    """Return why runs of one seed do not compare, though their settings do; "" where they do.

    A network that a task trains on first use is another one on another kind of processor, and data
    that are called the same may have changed.
    """
    for name, what in (("network", "networks"), ("evaluation data", "evaluation data")):
        if told := mixed(runs, (name,)):
            return f"they are of different {what}: {told}"
    return ""


def by_seed(runs: Sequence[Record]) -> dict[int, list[Record]]:
    """Return the runs of one cell by seed; of several of one, a seed of the method's own differs.

    What a method draws by its own seed has no counterpart in another method, so that such runs are
    never paired one by one: their mean is the value of their seed.
    """
    found: dict[int, list[Record]] = {}
    for run in runs:
        found.setdefault(run.seed, []).append(run)
    return found


def same(left: str, right: str) -> bool:
    """Return whether two cells have one value; a method without the setting has any of it."""
    return left == right or "-" in (left, right)


def differing(left: Record, right: Record, own: bool = False) -> str:
    """Return the settings in which two runs differ; own: those of the methods' schedules.

    What is off counts as such. Of a schedule the two must both have the setting; of the rest one
    that only one of them has counts where the other could have it.
    """
    mine, theirs = facts(left), facts(right)
    told = []
    for name in dict.fromkeys([*mine, *theirs]):
        group = name.partition(".")[0]
        if name in SEEDS or group == "quant" or (group == "recon") != own:
            continue
        if name in mine and name in theirs:
            unlike = mine[name] != theirs[name]
        else:
            unlike = not own and _could_have(name, mine, theirs)
        if unlike:
            told.append(f"{name} {mine.get(name, '-')} and {theirs.get(name, '-')}")
    return ", ".join(told)


def _could_have(name: str, mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Return whether both could have a setting that one lacks: their groups are of one class."""
    parent, _, last = name.rpartition(".")
    chosen = f"{parent}.{TARGET}"
    return bool(parent) and (last == TARGET or mine.get(chosen) == theirs.get(chosen))
