"""SignRound: shifts before rounding and the range, by signed gradients (arXiv 2309.05516).

The order of rounding and zero point, and the clamp of alpha and beta, are those of the authors'
code (auto-round, data_type/int.py and wrapper.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flexround.grid import Grid
from flexround.kernels.fake_quantize import FakeQuantize
from flexround.quantizers.base import WeightQuantizer, on_grid, straight_through
from flexround.ranges import SCALE_FLOOR, Ranges


class SignRound(WeightQuantizer):
    """W_hat = s * (clamp(round(W / s + V) + z) - z) with V, and the range's ends, learned.

    The range [low, high] that the ranges chose becomes [alpha low, beta high], which moves
    s = (beta high - alpha low) / (qmax - qmin) and z = round(-alpha low / s); symmetric grids have
    beta alone, which multiplies the scale. V [groups, elements] starts at 0, alpha and beta
    [groups, 1] at 1 and stay in [0, 1]: training starts at round-to-nearest to the last bit.
    V has no clamp of its own: each step moves it by the learning rate, so that it stays within the
    sum of the rates, 0.5025 in the paper's schedule.
    """

    def reference(self, weight: Tensor) -> Tensor:
        """Return the equation's W_hat in plain torch operations and autograd, same shape.

        Both roundings pass the gradient straight through, that of z to alpha and beta.
        """
        s, z = self.scale * self.beta, self.zero_point
        if self.alpha is not None:
            levels = self.grid.qmax - self.grid.qmin
            low, high = -self.scale * z, self.scale * (levels - z)
            s = (self.beta * high - self.alpha * low) / levels
            end = -self.alpha * low / s
            z = straight_through(torch.round(end), end)
        steps = self.grid.granularity.group(weight) / s + self.v
        return on_grid(steps, z, s, self.grid).reshape(weight.shape)

    def __init__(self, weight: Tensor, *, grid: Grid, ranges: Ranges) -> None:
        super().__init__(weight, grid=grid, ranges=ranges)
        self.v = nn.Parameter(torch.zeros_like(grid.granularity.group(weight.detach())))
        self.beta = nn.Parameter(torch.ones_like(self.scale))
        self.alpha = None if grid.symmetric else nn.Parameter(torch.ones_like(self.scale))

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return signed gradient descent over groups."""
        return SignSGD(groups)

    def dequantization_scale(self) -> Tensor:
        """Return s, [groups, 1]."""
        if self.alpha is None:
            return (self.scale * self.beta).clamp(min=SCALE_FLOOR)
        levels = self.grid.qmax - self.grid.qmin
        below = self.zero_point / levels  # the share of the range that lies below zero
        # Written as a change, since 1 is then kept to the last bit.
        change = (1 - below) * (self.beta - 1) + below * (self.alpha - 1)
        return (self.scale * (1 + change)).clamp(min=SCALE_FLOOR)

    def dequantization_zero_point(self) -> Tensor:
        """Return z, [groups, 1], whole numbers."""
        if self.alpha is None:
            return self.zero_point
        low = self.zero_point * self.scale * self.alpha
        out: Tensor = RoundThrough.apply(low / self.dequantization_scale())
        return out

    def round(self, values: Tensor, scale: Tensor) -> Tensor:
        """Return scale * (clamp(round(values / scale + V) + z) - z), [groups, elements]."""
        zero_point = self.dequantization_zero_point()
        out: Tensor = FakeQuantize.apply(values, scale, zero_point, self.v, self.grid)
        return out

    def after_step(self) -> None:
        """Keep the range's ends within the first range."""
        for factor in (self.alpha, self.beta):
            if factor is not None:
                factor.data.clamp_(0, 1)


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


class RoundThrough(torch.autograd.Function):
    """Round, with the gradient passed straight through."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return the nearest whole numbers."""
        return torch.round(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return grad."""
        return grad
