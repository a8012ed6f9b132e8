"""Learning curves: the loss of the mini-batches against the iteration, unit by unit."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from results.plots.cells import Cell, panels
from results.plots.style import few_ticks, legend, styles, wrapped

COLUMNS = 6
MARKED = 8  # points of a line that have a marker
MOST = 36  # panels on a page; of more units, that many are drawn, evenly spaced

Curves = dict[str, list[list[float]]]  # [iteration, loss] pairs by unit


def curves(cells: list[Cell]) -> dict[str, Figure]:
    """Return a figure for each model, task and width: a panel for each unit, a line a method.

    Raises:
        ValueError: when no record holds a curve.
    """
    looks = styles(cells)
    held = [cell for cell in cells if _curves(cell)]
    if not held:
        raise ValueError(
            f"plot curves: none of the {len(cells)} configurations has learning curves; "
            "gradients make them (rtn and the solvers use none), and older records lack them"
        )
    drawn = {}
    for names, members in panels(held, lambda c: (*c.where, c.width)).items():
        found = {cell.label: _curves(cell) for cell in members}
        units = list(dict.fromkeys(unit for units in found.values() for unit in units))
        shown = _spaced(units)
        figure, axes = wrapped(len(shown), COLUMNS, width=1.9, height=1.5, sharex=True)
        for ax, unit in zip(axes, shown, strict=True):
            for label, lines in found.items():
                if unit in lines:
                    iterations, losses = zip(*lines[unit], strict=True)
                    every = -(-len(losses) // MARKED)
                    look = looks[label] | {"markersize": 3, "markevery": every}
                    ax.plot(iterations, losses, **look)
            ax.set_title(unit, loc="left", fontsize=7)
            ax.set_yscale("log", nonpositive="mask")
            few_ticks(ax.yaxis)
        for ax in axes[-COLUMNS:]:  # also where the row below is not full
            ax.tick_params(labelbottom=True)
            ax.set_xlabel("iteration")
        part = f", {len(shown)} of {len(units)} units" if len(shown) < len(units) else ""
        figure.suptitle(", ".join(names) + part, fontsize=8)
        figure.supylabel("loss of a mini-batch\n(lower is better, log scale)", fontsize=8)
        legend(figure)
        drawn["-".join(["curves", *names]).replace("/", "_")] = figure
    return drawn


def _curves(cell: Cell) -> Curves:
    """Return the mean over seeds of each unit's curve, as far as all of them go.

    Seeds read the loss at the same iterations unless recon.patience has ended some of them earlier;
    between two readings a curve is then the line through them.
    """
    found: dict[str, list[list[list[float]]]] = {}
    for record in cell.records:
        for block in record.blocks:
            if block.get("curve"):  # records from before it was kept have none
                found.setdefault(block["name"], []).append(block["curve"])
    return {unit: _mean(runs) for unit, runs in found.items()}


def _mean(runs: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Return the mean of curves of [iteration, loss] at the iterations of the shortest."""
    shortest = min(runs, key=lambda run: run[-1][0])
    iterations = [iteration for iteration, _ in shortest]
    losses = [
        np.interp(iterations, [point[0] for point in run], [point[1] for point in run]).tolist()
        for run in runs
    ]
    return [
        [i, fmean(values)] for i, values in zip(iterations, zip(*losses, strict=True), strict=True)
    ]


def _spaced(units: Sequence[str]) -> list[str]:
    if len(units) <= MOST:
        return list(units)
    return [units[round(i * (len(units) - 1) / (MOST - 1))] for i in range(MOST)]
