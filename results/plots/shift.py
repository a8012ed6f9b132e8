"""Shift of codes from round-to-nearest against the size of a weight, in any layer.

As Figures 3 to 6 of FlexRound (arXiv 2306.00317). It takes the integers of a layer, which records
do not keep: a reconstruction returns them, `flexround.shifts` says what is counted.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from flexround.grid import QuantizedTensor
from results.plots.style import RC, wrapped

BINS = 1000  # of |W|: points that would cover each other are drawn once
MOST_COUNTS = 15


def shift(layers: Mapping[str, tuple[Tensor, QuantizedTensor]]) -> Figure:
    """Return a panel for each layer, named by its key: shifts in codes against |W|.

    Each is (weight, integers) as [out, in, *kernel]. On the right stands how many weights have
    moved so far.

    Raises:
        ValueError: when there is no layer, or a weight and its integers differ in shape.
    """
    if not layers:
        raise ValueError("plot shift: no layer is given")
    with rc_context(RC):
        figure, axes = wrapped(len(layers), 3, sharey=True)
        for ax, (name, (weight, integers)) in zip(axes, layers.items(), strict=True):
            moved = grid_shift(weight, integers).flatten()
            sizes = weight.detach().flatten().abs().double()
            x, y = _distinct(sizes, moved)
            ax.plot(x.tolist(), y.tolist(), ".", color="black", markersize=2)
            any_, more = ((moved.abs() > n).double().mean().item() for n in (0, 1))
            ax.set_title(f"{name}\n{any_:.1%} moved, {more:.1%} by more than 1", loc="left")
            ax.set_xlabel("|W|")
            levels, counts = moved.unique(return_counts=True)
            if len(levels) <= MOST_COUNTS:
                right = ax.secondary_yaxis("right")
                right.set_yticks(levels.tolist(), [f"{n:,}" for n in counts.tolist()])
                right.set_ylabel("weights")
        for ax in axes:
            ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_ylabel("shift from round-to-nearest [codes]")
    return figure


def _distinct(sizes: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """Return one point for all weights of one shift in one of BINS bins of |W|, at its middle."""
    width = sizes.max().clamp(min=torch.finfo(sizes.dtype).tiny) / BINS
    bins = (sizes / width).long().clamp(max=BINS - 1)
    pairs = torch.stack([bins, moved], 1).unique(dim=0)
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
