"""Ranges by the error that a layer's inputs weigh: where SignRound's second version starts.

Source: auto-round 0.16.1 (data_type/int.py, search_scales, and sign_roundv2/quantizer.py), the code
of arXiv 2512.04746; the importance of a weight is that of llama.cpp's imatrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flexround.grid import Grid
from flexround.ranges import SCALE_FLOOR, together

PART = 1 << 20  # weights searched at once on a CPU


@dataclass(frozen=True)
class ImportanceSearch:
    """argmin over s of sum of x^2 (w - s clamp(round(w / s)))^2, for symmetric grids.

    s = m / d with m the weight of the largest size, signed, and -d around 2^(bits - 1): at
    d = -2^(bits-1) the grid's lowest code is m itself. x^2 is the sum over the calibration set of
    the squares of the input that meets the weight; 1 where none is known.

    Attributes:
        squares: x^2 by input channel, [in]; None weighs all weights alike.
    """

    squares: Tensor | None = None

    def seeing(self, squares: Tensor) -> ImportanceSearch:
        """Return the search whose weights meet inputs of these squares, [in]."""
        return ImportanceSearch(squares)

    def ends(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the (low, high) of which the one that is not 0 has the lowest code."""
        end = self(values, grid)[0] * grid.qmin
        return end.clamp(max=0), end.clamp(min=0)

    def __call__(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return (scale, zero_point), both [groups, 1], for values [groups, elements].

        A scale is negative where the largest weight by size is positive.

        Raises:
            ValueError: when the grid has a zero point, or a table of levels.
        """
        if not grid.symmetric or grid.levels is not None:
            raise ValueError(
                "ranges=imatrix is for symmetric integers; give symmetric=true grid=integer, or "
                "ranges=lp"
            )
        weighed = self._weights(values)
        rows = max(1, together(values, PART) // values.shape[1])
        parts = zip(values.split(rows), weighed.split(rows), strict=True)
        scale = torch.cat([_best(part, own, grid) for part, own in parts])
        return scale, torch.zeros_like(scale)

    def _weights(self, values: Tensor) -> Tensor:
        """Return x^2 of each of values [groups, elements]."""
        if self.squares is None:
            return torch.ones_like(values)
        squares = self.squares.to(values)
        rows = values.numel() // len(squares)  # of the weight [out, in]
        return squares.expand(rows, -1).reshape(values.shape)


def divisors(bits: int) -> Iterator[float]:
    """Yield what the largest weight is divided by, but for its sign, in the order of the search."""
    most = 2 ** (bits - 1)
    yield most
    step, count = (0.01, 90) if bits == 2 else (0.0075 * most, 100)
    for index in range(-count, count + 1):
        if index:
            yield most - step * index


def _best(values: Tensor, weighed: Tensor, grid: Grid) -> Tensor:
    """Return the best scale of each row, [groups, 1]."""
    place = values.abs().argmax(dim=1, keepdim=True)
    largest = values.gather(1, place)
    best = torch.full_like(largest, SCALE_FLOOR)
    least = torch.full_like(largest, torch.inf)
    for divisor in divisors(grid.bits):
        scale = -largest / divisor
        scale = torch.where(scale.abs() < SCALE_FLOOR, SCALE_FLOOR, scale)
        rounded = torch.round(values / scale).clamp_(grid.qmin, grid.qmax).mul_(scale)
        error = rounded.sub_(values).square_().mul_(weighed).sum(dim=1, keepdim=True)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best
