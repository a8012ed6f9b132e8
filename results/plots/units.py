"""The reconstruction error of each unit, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonpath
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.plots.cells import Cell, panels
from results.plots.style import grid, legend, styles

SIDES = {"before": "error_before", "after": "error_after"}
MOST_TICKS = 40


def blocks(cells: list[Cell]) -> dict[str, Figure]:
    """Return the units' errors: a row for each model, task, width and chain of units.

    Runs with other units, or whose error is another quantity, have a row of their own: a
    solver's is that of its layers' outputs, and not of the unit's.

    Raises:
        ValueError: when no record holds units.
    """
    held = [cell for cell in cells if cell.records[0].blocks]
    if not held:
        raise ValueError(f"plot blocks: none of the {len(cells)} configurations reports its units")
    looks = styles(cells)
    found = panels(held, lambda c: (*c.where, c.width, _quantity(c), *_names(c)))
    figure, rows = grid(len(found), 2, width=4.2, height=2.9, sharey="row")
    for axes, ((model, task, width, quantity, *names), members) in zip(
        rows, found.items(), strict=True
    ):
        for ax, (side, field) in zip(axes, SIDES.items(), strict=True):
            for cell in members:
                ax.plot(
                    range(len(names)),
                    _errors(cell, field),
                    **looks[cell.label] | {"markersize": 3.5},
                )
            ax.set_title(f"{model}, {task}, {width}: {side}", loc="left")
            ax.set_yscale("log", nonpositive="mask")
            _name_units(ax, names)
        axes[0].set_ylabel(f"{quantity}\n(lower is better, log scale)")
    legend(figure)
    return {"blocks": figure}


def _quantity(cell: Cell) -> str:
    solved = any(block.get("objectives") for block in cell.records[0].blocks)
    return "squared error of layers' outputs" if solved else "squared error of the unit's output"


def _names(cell: Cell) -> list[str]:
    return [str(block["name"]) for block in cell.records[0].blocks]


def _errors(cell: Cell, field: str) -> list[float]:
    """Return the mean over seeds of each unit's error, in order."""
    reports = [block for record in cell.records for block in record.blocks]
    return [fmean(b[field] for b in reports if b["name"] == name) for name in _names(cell)]


def _name_units(ax: Axes, names: Sequence[str]) -> None:
    """Mark the units on the x axis by what their names do not share."""
    parents = [name.rpartition(".")[0].replace(".", "/") for name in names]
    shared = commonpath(parents).replace("/", ".")
    short = [name[len(shared) + 1 if shared else 0 :] for name in names]
    every = -(-len(names) // MOST_TICKS)
    ticks = list(range(0, len(names), every))
    turned = sum(len(short[i]) for i in ticks) > 70
    ax.set_xticks(ticks, [short[i] for i in ticks], rotation=90 if turned else 0, fontsize=6)
    ax.set_xlabel(f"unit ({shared}.*), in order" if shared else "unit, in order")
    ax.grid(axis="x", visible=False)
