"""Ranges of a grid: the first scale and zero point, by min-max or by the smallest L_p error.

Source: the L_2.4 search of LAPQ (arXiv 1911.07190) as BRECQ, QDrop and FlexRound use it: 80
candidates that shrink the range in steps of 1 %. The symmetric step 2 max|w| / (2^bits - 1)
follows FlexRound's supplementary code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flexround.grid import Grid
from flexround.kernels.chunking import CHUNK
from flexround.kernels.range_search import PART, Roots, best_scale, can_search, power

# BatchNorm folding leaves channels at zero (nine in MobileNetV2); a scale of 0 would give NaN.
SCALE_FLOOR = 1e-8
MOST_CANDIDATES = 10_000  # each is a pass over all weights
# Elements worked on at a time on a GPU, where each pass is a launch and no cache is to be kept: the
# few copies of them that are held take half a GiB.
ON_GPU = 1 << 25


class Ranges(Protocol):
    """Chooses scale and zero point for a weight, or the ends that they come from."""

    def ends(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the range's (low, high), both [groups, 1], not rounded, zero inside of it."""
        ...

    def __call__(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return (scale, zero_point), both [groups, 1], for values [groups, elements]."""
        ...


@dataclass(frozen=True)
class MinMax:
    """The grid just covers all values, zero always included."""

    def ends(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest of values [groups, elements], both [groups, 1]."""
        low = values.amin(dim=1, keepdim=True).clamp(max=0)
        return low, values.amax(dim=1, keepdim=True).clamp(min=0)

    def __call__(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return (scale, zero_point), both [groups, 1], for values [groups, elements]."""
        if grid.levels is not None:
            scale = grid.levels.cover(values.abs().amax(dim=1, keepdim=True))
            return scale, torch.zeros_like(scale)
        steps = 2**grid.bits - 1
        if grid.symmetric:
            scale = 2 * values.abs().amax(dim=1, keepdim=True) / steps
            scale = scale.clamp(min=SCALE_FLOOR)
            return scale, torch.zeros_like(scale)
        low, high = self.ends(values, grid)
        scale = ((high - low) / steps).clamp(min=SCALE_FLOOR)
        return scale, torch.round(-low / scale)


@dataclass(frozen=True)
class LpSearch:
    """argmin over k of sum |w - fake_quantize(w; scale = k * min-max scale)|^p.

    Both ends of an asymmetric range shrink together, so its zero point stays that of min-max;
    LpSearch2D moves it too.
    """

    p: float
    candidates: int
    step: float

    def __post_init__(self) -> None:
        if not 0 < self.p < math.inf:
            raise ValueError(f"ranges.p={self.p}: give a number above 0 (the papers use 2.4)")
        if self.candidates > MOST_CANDIDATES:
            raise ValueError(
                f"ranges.candidates={self.candidates}: give at most {MOST_CANDIDATES} "
                "(the papers use 80)"
            )
        if self.candidates < 1 or not 0 <= self.step * (self.candidates - 1) < 1:
            raise ValueError(
                f"ranges.candidates={self.candidates} with ranges.step={self.step}: the smallest "
                "candidate must keep a positive share of the range (the papers use 80 and 0.01)"
            )

    def ends(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the best share of min-max's (low, high), both [groups, 1]."""
        share = self(values, grid)[0] / MinMax()(values, grid)[0]
        low, high = MinMax().ends(values, grid)
        return share * low, share * high

    def reference(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return (scale, zero_point), both [groups, 1], by way of every candidate."""
        widest, zero_point = MinMax()(values, grid)
        best_scale = widest
        best_error = torch.full_like(widest, torch.inf)
        for scale in self._scales(widest, grid):
            error = lp_error(values, scale, zero_point, grid, self.p)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale = torch.where(better, scale, best_scale)
        return best_scale, zero_point

    def __call__(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return (scale, zero_point), both [groups, 1], for values [groups, elements]."""
        if self.candidates == 1 or not can_search(values, self.p):
            return self.reference(values, grid)
        rows, width = max(1, PART // values.shape[1]), _width(values)
        found = [self._best_of(part, grid, width) for part in values.split(rows)]
        return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])

    def _best_of(self, values: Tensor, grid: Grid, width: int) -> tuple[Tensor, Tensor]:
        """Return the same for some of the groups, by way of the candidates that may be best."""
        widest, zero_point = MinMax()(values, grid)
        scales = torch.cat(self._scales(widest, grid), dim=1).T.contiguous()

        def error(rows: Tensor, scale: Tensor) -> Tensor:
            picked, zeros = values.index_select(0, rows), zero_point.index_select(0, rows)
            return lp_error(picked, scale, zeros, grid, self.p, width)

        roots = Roots(values, zero_point, grid.codes(values), self.p)
        return best_scale(roots, scales, error)[:, None], zero_point

    def _scales(self, widest: Tensor, grid: Grid) -> list[Tensor]:
        """Return the candidates, each [groups, 1]."""
        shares = [1 - self.step * index for index in range(self.candidates)]
        if grid.levels is not None:
            return grid.levels.candidates(widest, shares)
        return [(widest * share).clamp(min=SCALE_FLOOR) for share in shares]


@dataclass(frozen=True)
class LpSearch2D(LpSearch):
    """argmin over k and z of sum |w - fake_quantize(w; k * min-max scale, zero point z)|^p.

    z takes every code of the grid, as in QDrop's observer (MSEObserver.perform_2D_search) and in
    the authors' code of FlexRound and LRQ for language models: the ends of the range move apart
    from each other. A symmetric grid has no zero point to move, there it is LpSearch.
    """

    def ends(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the (low, high) that the best scale and zero point reach, both [groups, 1]."""
        if grid.symmetric:
            return super().ends(values, grid)
        scale, zero_point = self(values, grid)
        return -zero_point * scale, (grid.qmax - zero_point) * scale

    def __call__(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return (scale, zero_point), both [groups, 1], for values [groups, elements]."""
        if grid.symmetric:
            return super().__call__(values, grid)
        rows = max(1, together(values) // values.shape[1])
        found = [self._search(part, grid) for part in values.split(rows)]
        return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])

    def _search(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the best (scale, zero_point) of values, by way of every code that may be it.

        What the values above the range lose can only grow as z does, and what those below it lose
        as z falls: from any z on, the walk up (down) ends where that loss alone is no gain.
        """
        widest, middle = MinMax()(values, grid)
        best_scale, best_zero = widest, middle
        best = torch.full_like(widest, torch.inf)
        for index in range(self.candidates):
            scale = (widest * (1 - self.step * index)).clamp(min=SCALE_FLOOR)
            clipping = _Clipping(values / scale, scale, self.p)
            start = best_zero
            for direction in (1, -1):
                zero = start
                while True:
                    inside = (zero >= grid.qmin) & (zero <= grid.qmax)
                    below, above = clipping(zero, grid)
                    error = torch.where(inside, clipping.rounding + below + above, torch.inf)
                    better = error < best
                    best = torch.where(better, error, best)
                    best_scale = torch.where(better, scale, best_scale)
                    best_zero = torch.where(better, zero, best_zero)
                    least = clipping.rounding + (above if direction == 1 else below)
                    if not (inside & (least < best)).any():
                        break
                    zero = zero + direction
        return best_scale, best_zero


class _Clipping:
    """What rounding and clipping lose of values at one scale, by the zero point.

    Attributes:
        rounding: sum |error|^p of each row on a grid without ends, [rows, 1].
    """

    def __init__(self, steps: Tensor, scale: Tensor, p: float) -> None:
        self._steps, self._p, self._unit = steps, p, scale.pow(p)
        self._nearest = torch.round(steps)
        self._own = power(steps - self._nearest, p)
        self.rounding = self._unit * self._own.sum(dim=1, keepdim=True)

    def __call__(self, zero_point: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return what is lost more, (below, above) the range of zero_point, both [rows, 1]."""
        low, high = grid.qmin - zero_point, grid.qmax - zero_point
        level = torch.minimum(torch.maximum(self._nearest, low), high)
        more = power(self._steps - level, self._p).sub_(self._own)
        above = more.where(self._nearest > high, 0).sum(dim=1, keepdim=True)
        below = more.where(self._nearest < low, 0).sum(dim=1, keepdim=True)
        return below * self._unit, above * self._unit


def lp_error(
    values: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    grid: Grid,
    p: float,
    width: int | None = None,
) -> Tensor:
    """Return sum |values - fake-quantized values|^p of each row, [groups, 1].

    width elements of a row are summed at once: the last digit of the sum depends on it.
    """
    error = torch.zeros_like(scale)
    for chunk in values.split(width or _width(values), dim=1):
        if grid.levels is None:
            found = grid.encode(chunk, scale, zero_point).sub_(zero_point).mul_(scale)
        else:
            found = grid.nearest(chunk, scale, zero_point)
        error += power(found.sub_(chunk), p).sum(dim=1, keepdim=True)
    return error


def _width(values: Tensor) -> int:
    """Return how many elements of every row of values are worked on at a time."""
    return max(1, together(values) // values.shape[0])


def together(values: Tensor, on_cpu: int = CHUNK) -> int:
    """Return how many elements of values are worked on at a time."""
    return on_cpu if values.device.type == "cpu" else ON_GPU
