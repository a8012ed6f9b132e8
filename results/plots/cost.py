"""Cost of a method's result: the metric against time and against the bytes of its state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from results.plots.cells import Cell, panels
from results.plots.style import grid, legend, log_if_wide, metric_axis, styles

MIB = 2**20


def cost(cells: list[Cell]) -> dict[str, Figure]:
    """Return the metric against cost, one point a run: a row for each model, task, width, device.

    The left column has the seconds of all units together, the right one the state of the unit
    with most, as one follows the other; it is missing where no record has it.

    Raises:
        ValueError: when no record holds units.
    """
    looks = styles(cells)
    runs = [replace(cell, records=[r]) for cell in cells for r in cell.records if r.blocks]
    if not runs:
        raise ValueError(f"plot cost: none of the {len(cells)} configurations reports its units")
    columns: dict[str, Callable[[Cell], float | None]] = {
        "time of all units [s]": _seconds,
        "state of the largest unit [MiB]": _state,
    }
    columns = {n: of for n, of in columns.items() if any(of(run) is not None for run in runs)}
    found = panels(runs, lambda run: (*run.where, run.width, run.records[0].device))
    figure, rows = grid(len(found), len(columns), sharey="row")
    for axes, (names, members) in zip(rows, found.items(), strict=True):
        for ax, (name, of) in zip(axes, columns.items(), strict=True):
            points = [(run, cost) for run in members if (cost := of(run)) is not None]
            for label in dict.fromkeys(run.label for run, _ in points):
                own = [(cost, run.mean) for run, cost in points if run.label == label]
                look = looks[label] | {"linestyle": "none"}
                ax.plot([x for x, _ in own], [y for _, y in own], **look)
            wide = log_if_wide(ax, "x", [x for _, x in points])
            ax.set_xlabel(f"{name} (lower is better{', log scale' if wide else ''})")
            metric_axis(ax, members)
        for ax in axes[1:]:
            ax.set_ylabel("")
        axes[0].set_title(", ".join(names), loc="left")
    legend(figure)
    return {"cost": figure}


def _seconds(run: Cell) -> float:
    return sum(float(block["seconds"]) for block in run.records[0].blocks)


def _state(run: Cell) -> float | None:
    """Return MiB; None in records from before they were counted."""
    blocks: list[dict[str, Any]] = run.records[0].blocks
    held = [block["cost"]["state_bytes"] for block in blocks if "cost" in block]
    return max(held) / MIB if held else None
