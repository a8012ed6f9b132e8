"""The main metric against bits, and against the number of calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from results.plots.cells import Cell, panels
from results.plots.style import legend, metric_axis, styles, wrapped


def bits(cells: list[Cell]) -> dict[str, Figure]:
    """Return the metric against bits: a panel for each model and task, a line for each method.

    Raises:
        ValueError: when all runs have the same bits.
    """
    if len({cell.bits for cell in cells}) < 2:
        raise ValueError(f"plot bits: every run has bits={cells[0].bits}; sweep bits=4,3,2")
    cells = _with_activations(cells)

    def axis(ax: Axes, members: list[Cell]) -> None:
        widths = {cell.bits: _tick(cell, members) for cell in members}
        ax.set_xticks(list(widths), list(widths.values()))
        acts = any(cell.act_bits is not None for cell in members)
        ax.set_xlabel("bits of weights (W) and activations (A)" if acts else "bits of a weight")

    return {"bits": _draw(cells, lambda c: c.where, lambda c: c.bits, axis)}


def samples(cells: list[Cell]) -> dict[str, Figure]:
    """Return the metric against num_samples: a panel for each model, task and width.

    As Figure 7 of FlexRound (arXiv 2306.00317, app. E).

    Raises:
        ValueError: when all runs have the same num_samples.
    """
    known = [cell for cell in cells if cell.told["num_samples"].isdigit()]
    sizes = sorted({_samples(cell) for cell in known})
    if len(sizes) < 2:
        raise ValueError(
            f"plot samples: every run has num_samples={sizes[0] if sizes else None}; "
            "sweep num_samples=32,64,128"
        )

    def axis(ax: Axes, members: list[Cell]) -> None:
        ax.set_xscale("log", base=2)
        ticks = sorted({_samples(cell) for cell in members})
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("calibration samples (log scale)")

    return {"samples": _draw(known, lambda c: (*c.where, c.width), _samples, axis)}


def _draw(
    cells: Sequence[Cell],
    where: Callable[[Cell], tuple[str, ...]],
    x: Callable[[Cell], int],
    axis: Callable[[Axes, list[Cell]], None],
) -> Figure:
    """Return a figure with a panel for each of where, a line for each label; axis names x."""
    looks, found = styles(cells), panels(cells, where)
    figure, axes = wrapped(len(found), 3)
    for ax, (names, members) in zip(axes, found.items(), strict=True):
        for (label,), line in panels(members, lambda c: (c.label,)).items():
            line.sort(key=x)
            ax.plot([x(c) for c in line], [c.mean for c in line], **looks[label])
            spread = [(x(c), c.mean, c.std) for c in line if c.std is not None]
            if spread:
                at, means, stds = (list(values) for values in zip(*spread, strict=True))
                ax.errorbar(
                    at, means, stds,
                    fmt="none", ecolor=looks[label]["color"], elinewidth=0.8, capsize=2,
                )  # fmt: skip
        ax.set_title(", ".join(names), loc="left")
        metric_axis(ax, members)
        axis(ax, members)
    legend(figure)
    return figure


def _samples(cell: Cell) -> int:
    return int(cell.told["num_samples"])


def _tick(cell: Cell, members: Sequence[Cell]) -> str:
    """Return the tick of a cell's bits: with those of activations where there is one answer."""
    widths = {other.width for other in members if other.bits == cell.bits}
    if len(widths) == 1 and cell.act_bits is not None:
        return cell.width
    return str(cell.bits)


def _with_activations(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells, the bits of activations in their labels where ticks can't tell them."""
    found: dict[tuple[str, ...], set[int | None]] = {}
    for cell in cells:
        found.setdefault((*cell.where, str(cell.bits)), set()).add(cell.act_bits)
    if all(len(acts) == 1 for acts in found.values()):
        return list(cells)
    return [replace(cell, label=cell.label + _activations(cell, cells)) for cell in cells]


def _activations(cell: Cell, cells: Sequence[Cell]) -> str:
    line = [other for other in cells if (*other.where, other.label) == (*cell.where, cell.label)]
    if cell.act_bits is None:
        return ""
    if len({c.act_bits for c in line}) > 1 and all(c.act_bits == c.bits for c in line):
        return ", A = W"
    return f", A{cell.act_bits}"
