"""Ranges of a grid: the first scale and zero point, by min-max or by the smallest L_p error.

Source: the L_2.4 search of LAPQ (arXiv 1911.07190) as BRECQ, QDrop and FlexRound use it: 80
candidates that shrink the range in steps of 1 %. The symmetric step 2 max|w| / (2^bits - 1)
follows FlexRound's supplementary code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flexround.grid import Grid
from flexround.kernels.chunking import CHUNK

# BatchNorm folding leaves channels at zero (nine in MobileNetV2); a scale of 0 would give NaN.
SCALE_FLOOR = 1e-8


class Ranges(Protocol):
    """Chooses scale and zero point for a weight."""

    def __call__(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return (scale, zero_point), both [groups, 1], for values [groups, elements]."""
        ...


@dataclass(frozen=True)
class MinMax:
    """The grid just covers all values, zero always included."""

    def __call__(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return (scale, zero_point), both [groups, 1], for values [groups, elements]."""
        steps = 2**grid.bits - 1
        if grid.symmetric:
            scale = 2 * values.abs().amax(dim=1, keepdim=True) / steps
            scale = scale.clamp(min=SCALE_FLOOR)
            return scale, torch.zeros_like(scale)
        low = values.amin(dim=1, keepdim=True).clamp(max=0)
        high = values.amax(dim=1, keepdim=True).clamp(min=0)
        scale = ((high - low) / steps).clamp(min=SCALE_FLOOR)
        return scale, torch.round(-low / scale)


@dataclass(frozen=True)
class LpSearch:
    """argmin over k of sum |w - fake_quantize(w; scale = k * min-max scale)|^p.

    Both ends of an asymmetric range shrink together, so its zero point stays that of min-max.
    """

    p: float
    candidates: int
    step: float

    def __post_init__(self) -> None:
        if self.p <= 0:
            raise ValueError(f"ranges.p={self.p}: give a number above 0 (the papers use 2.4)")
        if self.candidates < 1 or self.step * (self.candidates - 1) >= 1:
            raise ValueError(
                f"ranges.candidates={self.candidates} with ranges.step={self.step}: the smallest "
                "candidate must keep a positive share of the range (the papers use 80 and 0.01)"
            )

    def __call__(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return (scale, zero_point), both [groups, 1], for values [groups, elements]."""
        widest, zero_point = MinMax()(values, grid)
        best_scale = widest
        best_error = torch.full_like(widest, torch.inf)
        for index in range(self.candidates):
            scale = (widest * (1 - self.step * index)).clamp(min=SCALE_FLOOR)
            error = lp_error(values, scale, zero_point, grid, self.p)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale = torch.where(better, scale, best_scale)
        return best_scale, zero_point


def lp_error(values: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, p: float) -> Tensor:
    """Return sum |values - fake-quantized values|^p of each row, [groups, 1]."""
    error = torch.zeros_like(scale)
    width = max(1, CHUNK // values.shape[0])
    for chunk in values.split(width, dim=1):
        levels = grid.encode(chunk, scale, zero_point).sub_(zero_point)
        distance = levels.mul_(scale).sub_(chunk).abs_()
        # Three times as fast as pow; 0 goes through -inf back to 0.
        error += distance.log2_().mul_(p).exp2_().sum(dim=1, keepdim=True)
    return error
