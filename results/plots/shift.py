"""Shift of codes from round-to-nearest against the size of a weight, in any layer.

As Figures 3 to 6 of FlexRound (arXiv 2306.00317). It takes the integers of a layer, which records
do not keep: a reconstruction returns them, and a run with save=true leaves them. `python -m results
plot shift` finds those of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from flexround.grid import QuantizedTensor
from results.plots.style import RC, wrapped

BINS = 1000  # of |W|: points that would cover each other are drawn once
MOST_COUNTS = 15


class Shift(NamedTuple):
    """|W| of a layer's weights, and how many codes each has moved, both [weights]."""

    sizes: Tensor
    moved: Tensor

    @classmethod
    def of(cls, weight: Tensor, integers: QuantizedTensor) -> Shift:
        """Return that of a full-precision weight and its integers, both [out, in, *kernel].

        Raises:
            ValueError: when they differ in shape.
        """
        moved = grid_shift(weight, integers).flatten()
        return cls(weight.detach().flatten().abs().double(), moved)


def shift(layers: Mapping[str, tuple[Tensor, QuantizedTensor]]) -> Figure:
    """Return a panel for each layer, named by its key: shifts in codes against |W|.

    Each is (weight, integers) as [out, in, *kernel]. On the right stands how many weights have
    moved so far.

    Raises:
        ValueError: when there is no layer, or a weight and its integers differ in shape.
    """
    with rc_context(RC):
        return panels({name: Shift.of(*layer) for name, layer in layers.items()})


def panels(
    shifts: Mapping[str, Shift],
    columns: int = 3,
    colours: Sequence[str] = ("black",),
    bins: int = BINS,
) -> Figure:
    """Return the figure of `shift` for layers by title, in the settings of matplotlib as they are.

    A row has at most so many columns, each of its own colour where there are several; bins are of
    |W|.

    Raises:
        ValueError: when there is no layer.
    """
    if not shifts:
        raise ValueError("plot shift: no layer is given")
    figure, axes = wrapped(len(shifts), columns, sharey=True)
    for place, (ax, (title, found)) in enumerate(zip(axes, shifts.items(), strict=True)):
        _panel(ax, title, found, colours[place % columns % len(colours)], bins)
    for ax in axes[::columns]:
        ax.set_ylabel("shift from round-to-nearest [codes]")
    return figure


def _panel(ax: Axes, title: str, found: Shift, colour: str, bins: int) -> None:
    x, y = _distinct(found.sizes, found.moved, bins)
    ax.plot(x.tolist(), y.tolist(), ".", color=colour, markersize=2)
    any_, more = ((found.moved.abs() > n).double().mean().item() for n in (0, 1))
    ax.set_title(f"{title}\n{any_:.1%} moved, {more:.1%} by more than 1", loc="left")
    ax.set_xlabel("|W|")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    levels, counts = found.moved.unique(return_counts=True)
    if len(levels) <= MOST_COUNTS:
        right = ax.secondary_yaxis("right")
        right.set_yticks(levels.tolist(), [f"{n:,}" for n in counts.tolist()])
        right.set_ylabel("weights")


def _distinct(sizes: Tensor, moved: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Return one point for all weights of one shift in one of the bins of |W|, at its middle."""
    width = sizes.max().clamp(min=torch.finfo(sizes.dtype).tiny) / bins
    places = (sizes / width).long().clamp(max=bins - 1)
    pairs = torch.stack([places, moved], 1).unique(dim=0)
    return (pairs[:, 0] + 0.5) * width, pairs[:, 1]


def grid_shift(weight: Tensor, integers: QuantizedTensor) -> Tensor:
    """Return codes minus those of round-to-nearest on the same scale and zero point.

    weight is the full-precision one as [out, in, *kernel]; so is the result, int64.

    Raises:
        ValueError: when the shapes differ.
    """
    if weight.shape != integers.codes.shape:
        raise ValueError(
            f"weight {list(weight.shape)} and codes {list(integers.codes.shape)} are not of one "
            "layer; both are [out, in, *kernel] (a Conv1D's weight is the transpose)"
        )
    grid = integers.grid
    rows = grid.granularity.group(weight.detach().to(integers.scale))
    nearest = grid.encode(rows, integers.scale, integers.zero_point).reshape(weight.shape)
    return integers.codes.to(torch.int64) - nearest.to(torch.int64)
