"""AdaQuant: learn an additive shift of the weight and its range (arXiv 2006.10518).

The parameters and rates are those of the authors' code (CalibTIP, utils/adaquant.py and
models/modules/quantize.py), which learns the bias and the ranges of activations along with them;
here the method is its rounding alone. As theirs, its clamp comes before the rounding: the codes are
the same, but a weight up to half a step beyond the last level gets no gradient. Their weights have
no symmetric grid; on ours the range alone is learned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flexround.grid import Grid
from flexround.kernels.fake_quantize import FakeQuantize
from flexround.levels import straight_through
from flexround.quantizers.base import RoundThrough, WeightQuantizer, on_grid
from flexround.ranges import SCALE_FLOOR, Ranges


class AdaQuant(WeightQuantizer):
    """W_hat = s1 * (round(clamp((W + V) / s1 + z)) - z), R and L the range and its low end.

    s1 = R / (2^bits - 1) and z = round(-L / s1), 0 on a symmetric grid, which has no L. A step of
    the optimizer moves the whole range by the learning rate, and s1 by that over 2^bits - 1, or
    over what a table of levels spans. V
    [out, in, *kernel] starts at zero; R and L [groups, 1] are held as their change since the first
    range, so that training starts at round-to-nearest to the last bit. V and the range each have
    their own learning rate, in units of the weight; the setting's learning rate is not used. V may
    move a weight by more than one step.
    """

    low: Tensor  # [groups, 1], as the ranges chose it, not rounded

    def reference(self, weight: Tensor) -> Tensor:
        """Return the equation's W_hat in plain torch operations and autograd, same shape."""
        s1 = self.scale + self.range_change / self.grid.width
        s1 = self.grid.admitted(s1)
        z = self.zero_point
        if self.low_change is not None:
            end = -(self.low + self.low_change) / s1
            z = torch.clamp(torch.round(end), 0, self.grid.qmax)
            z = straight_through(z, end * (z == torch.round(end)))
        steps = self.grid.granularity.group(weight + self.v) / s1
        return on_grid(steps, z, s1, self.grid, clamp_first=True).reshape(weight.shape)

    def __init__(
        self, weight: Tensor, *, grid: Grid, ranges: Ranges, lr_v: float, lr_range: float
    ) -> None:
        super().__init__(weight, grid=grid, ranges=ranges)
        for name, rate in (("lr_v", lr_v), ("lr_range", lr_range)):
            if rate < 0:
                raise ValueError(f"quant.{name}={rate}: give 0, which learns nothing, or more")
        self.lr_v, self.lr_range = lr_v, lr_range
        self.v = nn.Parameter(weight.detach().new_zeros(weight.shape))

    def _start(self, values: Tensor, ranges: Ranges) -> None:
        self.low_change = None
        if self.grid.symmetric:
            super()._start(values, ranges)
        else:
            low, high = ranges.ends(values, self.grid)
            scale = ((high - low) / self.grid.qmax).clamp(min=SCALE_FLOOR)
            self.register_buffer("low", low)
            self.register_buffer("scale", scale)
            self.register_buffer("zero_point", torch.round(-low / scale))
            self.low_change = nn.Parameter(torch.zeros_like(low))
        self.range_change = nn.Parameter(torch.zeros_like(self.scale))

    def dequantization_scale(self) -> Tensor:
        """Return s1, [groups, 1]."""
        s1 = self.scale + self.range_change / self.grid.width
        # As in the authors' code a range below the floor counts as the floor; at it, it may grow.
        sign = torch.where(self.scale < 0, -1.0, 1.0).to(s1)
        return self.grid.admitted(torch.where(sign * s1 < SCALE_FLOOR, sign * SCALE_FLOOR, s1))

    def dequantization_zero_point(self) -> Tensor:
        """Return z, [groups, 1], whole numbers of the grid."""
        if self.low_change is None:
            return self.zero_point
        end = -(self.low + self.low_change) / self.dequantization_scale()
        z: Tensor = RoundThrough.apply(end)
        held = z.detach().clamp(self.grid.qmin, self.grid.qmax)
        return torch.where(z == held, z, held)  # the bounds pass the gradient

    def rescale(self, weight: Tensor) -> Tensor:
        """Return W + V, [out, in, *kernel]."""
        return weight + self.v

    def round(self, values: Tensor, scale: Tensor) -> Tensor:
        """Return scale * (round(clamp(values / scale + z)) - z), [groups, elements]."""
        zero_point = self.dequantization_zero_point()
        out: Tensor = FakeQuantize.apply(values, scale, zero_point, None, self.grid, True)
        return out

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return one group for V and one for the range; lr is not used."""
        ends = [p for p in (self.range_change, self.low_change) if p is not None]
        return [{"params": [self.v], "lr": self.lr_v}, {"params": ends, "lr": self.lr_range}]
