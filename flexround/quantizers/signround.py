"""SignRound: shifts before rounding and the range's ends, by signed gradients (arXiv 2309.05516).

The order of rounding and zero point, the signed scale of a symmetric grid and the clamp of alpha
and beta are those of the authors' code (auto-round, data_type/int.py and wrapper.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flexround.grid import Grid
from flexround.kernels.fake_quantize import FakeQuantize
from flexround.levels import straight_through
from flexround.quantizers.base import RoundThrough, WeightQuantizer, on_grid
from flexround.ranges import SCALE_FLOOR, Ranges


class SignRound(WeightQuantizer):
    """W_hat = s * (clamp(round(W / s + V) + z) - z) with V, and the range's ends, learned.

    low and high are the ends of the weight's own range, exact: under ranges=min_max its min and
    max. With l = alpha low and h = beta high an asymmetric grid has s = (h - l) / (2^b - 1) and
    z = round(-l / s), the one place where an end is rounded. A symmetric grid has the larger one of
    -l and h at the code -2^(b-1), the full range: s = max(-l, h) / 2^(b-1), **negative** where h is
    not the smaller one, and z = 0. On a table of levels the larger one is the largest level, and V
    is in units of the gap that W / s lies in: at most half of it leads to one of its two ends.

    V [groups, elements] starts at 0, alpha and beta [groups, 1] at 1 and are held in [0, most = 1]:
    training starts at round-to-nearest on that grid to the last bit. V has no clamp of its own:
    each step moves it by the learning rate, so that it stays within the sum of the rates, 0.5025 in
    the paper's schedule.
    """

    most: ClassVar[float] = 1.0
    low: Tensor  # [groups, 1], as the ranges chose them
    high: Tensor

    def reference(self, weight: Tensor) -> Tensor:
        """Return the equation's W_hat in plain torch operations and autograd, same shape.

        Both roundings pass the gradient straight through, that of z to alpha and beta.
        """
        low, high = self.alpha * self.low, self.beta * self.high
        if self.grid.levels is not None:
            s = self.grid.levels.cover(torch.maximum(-low, high))
            z = torch.zeros_like(s)
        elif self.grid.symmetric:
            sign = torch.where(-low > high, 1.0, -1.0)
            s = sign * torch.maximum(-low, high) / -self.grid.qmin
            z = torch.zeros_like(s)
        else:
            s = (high - low) / self.grid.qmax
            z = straight_through(torch.round(-low / s), -low / s)
        steps = self.grid.granularity.group(weight) / s
        return on_grid(steps, z, s, self.grid, shift=self.v).reshape(weight.shape)

    def __init__(self, weight: Tensor, *, grid: Grid, ranges: Ranges) -> None:
        super().__init__(weight, grid=grid, ranges=ranges)
        self.v = nn.Parameter(torch.zeros_like(grid.granularity.group(weight.detach())))

    def _start(self, values: Tensor, ranges: Ranges) -> None:
        low, high = ranges.ends(values, self.grid)
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.alpha = nn.Parameter(torch.ones_like(low))
        self.beta = nn.Parameter(torch.ones_like(high))
        self.register_buffer("scale", self.dequantization_scale())
        self.register_buffer("zero_point", self.dequantization_zero_point())

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return signed gradient descent over groups."""
        return SignSGD(groups)

    def dequantization_scale(self) -> Tensor:
        """Return s, [groups, 1]; on a symmetric grid either sign, and never 0."""
        low, high = self.alpha * self.low, self.beta * self.high
        if self.grid.levels is not None:
            return self.grid.levels.cover(torch.maximum(-low, high))
        if not self.grid.symmetric:
            return ((high - low) / self.grid.qmax).clamp(min=SCALE_FLOOR)
        # Equal ends share the gradient, which torch.maximum halves between them.
        size = (torch.maximum(-low, high) / -self.grid.qmin).clamp(min=SCALE_FLOOR)
        return torch.where(-low > high, size, -size)

    def dequantization_zero_point(self) -> Tensor:
        """Return z, [groups, 1], whole numbers."""
        if self.grid.symmetric:
            return torch.zeros_like(self.low)
        out: Tensor = RoundThrough.apply(-self.alpha * self.low / self.dequantization_scale())
        return out

    def round(self, values: Tensor, scale: Tensor) -> Tensor:
        """Return scale * (clamp(round(values / scale + V) + z) - z), [groups, elements]."""
        zero_point = self.dequantization_zero_point()
        out: Tensor = FakeQuantize.apply(values, scale, zero_point, self.v, self.grid)
        return out

    def after_step(self) -> None:
        """Keep the range's ends within most times the first range."""
        for factor in (self.alpha, self.beta):
            factor.data.clamp_(0, self.most)


class SignRoundV2(SignRound):
    """SignRound whose range may grow: alpha and beta in [0, 2] (arXiv 2512.04746).

    It starts from ranges=imatrix, where one of both ends is 0 and the other one's factor is the
    scale's. Its loss without the largest errors is not here.
    """

    most: ClassVar[float] = 2.0


class SignSGD(torch.optim.Optimizer):
    """p <- p - lr * sign(grad): no state, every step of one size."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.add_(param.grad.sign(), alpha=-group["lr"])
