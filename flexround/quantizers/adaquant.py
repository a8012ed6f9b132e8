"""AdaQuant: learn an additive shift of the weight and the step size (arXiv 2006.10518).

The authors' code (CalibTIP, utils/adaquant.py) learns the zero point, the bias and the ranges of
activations along with them; here the method is its rounding alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from flexround.grid import Grid
from flexround.quantizers.base import WeightQuantizer, on_grid
from flexround.ranges import SCALE_FLOOR, Ranges


class AdaQuant(WeightQuantizer):
    """W_hat = s1 * round((W + V) / s1), in FlexRound's notation element-wise addition.

    V [out, in, *kernel] starts at zero, s1 [groups, 1] at the ranges' scale. Each has its own
    learning rate, in units of the weight, as in the authors' code; the setting's learning rate is
    not used. V may move a weight by more than one step.
    """

    def reference(self, weight: Tensor) -> Tensor:
        """Return the equation's W_hat in plain torch operations and autograd, same shape."""
        steps = self.grid.granularity.group(weight + self.v) / self.s1
        return on_grid(steps, self.zero_point, self.s1, self.grid).reshape(weight.shape)

    def __init__(
        self, weight: Tensor, *, grid: Grid, ranges: Ranges, lr_v: float, lr_scale: float
    ) -> None:
        super().__init__(weight, grid=grid, ranges=ranges)
        self.lr_v, self.lr_scale = lr_v, lr_scale
        self.v = nn.Parameter(weight.detach().new_zeros(weight.shape))
        self.s1 = nn.Parameter(self.scale.clone())

    def dequantization_scale(self) -> Tensor:
        """Return s1, [groups, 1]."""
        return self.s1

    def rescale(self, weight: Tensor) -> Tensor:
        """Return W + V, [out, in, *kernel]."""
        return weight + self.v

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return one group for V and one for s1; lr is not used."""
        return [
            {"params": [self.v], "lr": self.lr_v},
            {"params": [self.s1], "lr": self.lr_scale},
        ]

    def after_step(self) -> None:
        """Keep the step size positive."""
        self.s1.data.clamp_(min=SCALE_FLOOR)
