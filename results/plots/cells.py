"""Cells of the leaderboard as the plots see them: runs that differ in their seed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from results.records.off import OFF
from results.records.record import Record
from results.records.selection import spelled
from results.tables.leaderboard import CELL, rows_and_runs


@dataclass(frozen=True)
class Cell:
    """The finished runs of one configuration.

    Attributes:
        label: the method, with the settings that tell it apart from its like.
        told: the settings that tell cells apart, as text, by name; a dash where there is none.
    """

    task: str
    model: str
    label: str
    bits: int
    act_bits: int | None
    told: dict[str, str]
    records: list[Record]

    @property
    def where(self) -> tuple[str, str]:
        """Return model and task."""
        return self.model, self.task

    @property
    def width(self) -> str:
        """Return the bits of weights and activations, such as W4A8."""
        return f"W{self.bits}" + (f"A{self.act_bits}" if self.act_bits is not None else "")

    @property
    def values(self) -> list[float]:
        """Return the main metric of each run."""
        return [r.value for r in self.records if r.value is not None]

    @property
    def mean(self) -> float:
        """Return the mean over seeds."""
        return fmean(self.values)

    @property
    def std(self) -> float | None:
        """Return the sample standard deviation over seeds, None for one."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def fp(self) -> float | None:
        """Return the full-precision metric."""
        found = [r.fp_value for r in self.records if r.fp_value is not None]
        return fmean(found) if found else None


Key = tuple[Any, ...]


def cells(records: Sequence[Record], by: Sequence[str] = (), axis: str | None = None) -> list[Cell]:
    """Return the cells that hold finished runs, in the order of the table's rows.

    by tells cells apart as it does a table's rows; so does axis, which no label names.

    Raises:
        ValueError: when no run has finished, or two configurations fall into one cell.
    """
    by = list(dict.fromkeys([*by, *([axis] if axis else [])]))
    table, runs = rows_and_runs(records, by)
    names = list(table.columns[len(CELL) : table.columns.get_loc("bits")])
    keys = table[[*CELL, *names, "bits", "act_bits"]].astype(object)
    keys = keys.where(keys.notna(), None)
    held: dict[Key, list[Record]] = {}
    for key, members in zip(keys.itertuples(index=False, name=None), runs, strict=True):
        if finished := [r for r in members if r.status == "ok"]:
            held[key] = finished
    if not held:
        raise ValueError(f"nothing to draw: none of the {len(records)} runs has finished")
    found = []
    for key, members in held.items():
        task, model, quant, *values, bits, act_bits = key
        telling = _telling([k for k in held if k[2] == quant], names, by)
        words = [
            _word(names[i], values[i], bits)
            for i in telling
            if values[i] not in ("-", spelled(OFF.get(names[i], "-"))) and names[i] != axis
        ]
        told = dict(zip(names, values, strict=True))
        label = ", ".join([quant, *words])
        act = None if act_bits is None else int(act_bits)
        found.append(Cell(task, model, label, bits, act, told, members))
    return found


def _telling(keys: list[Key], names: Sequence[str], by: Sequence[str]) -> list[int]:
    """Return which names a method's label needs, by index.

    Those of by that differ, and of what joined them no more than tell its cells apart: what
    follows from another setting would break a line into points.
    """
    first = len(CELL)  # of a key: where the names begin
    needed = [i for i in range(len(names)) if len({k[first + i] for k in keys}) > 1]
    for i in reversed([i for i in needed if names[i] not in by]):
        rest = [j for j in range(len(names)) if j in needed and j != i]
        left = {(k[:2], tuple(k[first + j] for j in rest), k[-2:]) for k in keys}
        if len(left) == len(keys):
            needed = rest
    return needed


def _word(name: str, value: str, bits: int) -> str:
    if name.endswith("._target_"):
        return value
    short = name.rpartition(".")[2]
    return (
        f"{short} = bits" if value == str(bits) and short.endswith("bits") else f"{short} {value}"
    )


def panels(cells: Sequence[Cell], key: Callable[[Cell], Key]) -> dict[Key, list[Cell]]:
    """Return the cells by what key says of them, in the order of the first of each."""
    found: dict[Key, list[Cell]] = {}
    for cell in cells:
        found.setdefault(key(cell), []).append(cell)
    return found
