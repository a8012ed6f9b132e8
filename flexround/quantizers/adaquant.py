"""AdaQuant: learn an additive shift of the weight and the step size (arXiv 2006.10518).

The parameters and rates are those of the authors' code (CalibTIP, utils/adaquant.py and
models/modules/quantize.py), which learns the zero point, the bias and the ranges of activations
along with them; here the method is its rounding alone, on the first zero point. Their clamp comes
before the rounding, ours after it: the same codes, but a weight up to half a step beyond the last
level keeps its gradient here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flexround.grid import Grid
from flexround.quantizers.base import WeightQuantizer, on_grid
from flexround.ranges import SCALE_FLOOR, Ranges


class AdaQuant(WeightQuantizer):
    """W_hat = s1 * round((W + V) / s1), in FlexRound's notation element-wise addition.

    V [out, in, *kernel] starts at zero. What is learned of the step size is the range, s1 =
    R / (2^bits - 1), as in the authors' code: a step of the optimizer moves the whole range by the
    learning rate and s1 by that over 2^bits - 1. R [groups, 1] is held as its change since the
    ranges' scale, so that training starts at round-to-nearest to the last bit. V and R each have
    their own learning rate, in units of the weight; the setting's learning rate is not used. V may
    move a weight by more than one step.
    """

    def reference(self, weight: Tensor) -> Tensor:
        """Return the equation's W_hat in plain torch operations and autograd, same shape."""
        s1 = self.scale + self.range_change / self._levels
        steps = self.grid.granularity.group(weight + self.v) / s1
        return on_grid(steps, self.zero_point, s1, self.grid).reshape(weight.shape)

    def __init__(
        self, weight: Tensor, *, grid: Grid, ranges: Ranges, lr_v: float, lr_range: float
    ) -> None:
        super().__init__(weight, grid=grid, ranges=ranges)
        self.lr_v, self.lr_range = lr_v, lr_range
        self.v = nn.Parameter(weight.detach().new_zeros(weight.shape))
        self.range_change = nn.Parameter(torch.zeros_like(self.scale))

    def dequantization_scale(self) -> Tensor:
        """Return s1, [groups, 1]."""
        s1 = self.scale + self.range_change / self._levels
        # As in the authors' code a range below the floor counts as the floor; at it, it may grow.
        return torch.where(s1 < SCALE_FLOOR, SCALE_FLOOR, s1)

    def rescale(self, weight: Tensor) -> Tensor:
        """Return W + V, [out, in, *kernel]."""
        return weight + self.v

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return one group for V and one for the range; lr is not used."""
        return [
            {"params": [self.v], "lr": self.lr_v},
            {"params": [self.range_change], "lr": self.lr_range},
        ]

    @property
    def _levels(self) -> int:
        """Steps from the first level to the last."""
        return self.grid.qmax - self.grid.qmin
