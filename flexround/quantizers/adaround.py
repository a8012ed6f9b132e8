"""AdaRound: learn to round each weight down or up (arXiv 2004.10568, eqs. 20-25)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flexround.fusion import fused, parts
from flexround.grid import Grid
from flexround.quantizers.base import WeightQuantizer
from flexround.ranges import Ranges

ZETA, GAMMA = 1.1, -0.1  # the rectified sigmoid's stretch, eq. 23


@fused
def _soften(
    sigmoid: Tensor, values: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[int, int],
    slope: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """Write the soft-rounded values to out and their derivative by sigmoid to slope."""
    low, high = bounds
    up = torch.mul(sigmoid, ZETA - GAMMA, out=slope).add_(GAMMA)
    rectified = up.clamp(0, 1)
    inside = up.eq_(rectified)  # explicit and inclusive of the bounds, see to_levels
    soft = torch.div(values, scale, out=out).floor_().add_(rectified)
    if low == 0:
        soft.add_(zero_point)
    levels = torch.clamp(soft, low, high, out=rectified)
    inside.mul_(soft.eq_(levels)).mul_(scale * (ZETA - GAMMA))
    if low == 0:
        levels.sub_(zero_point)
    torch.mul(levels, scale, out=out)


class SoftRound(torch.autograd.Function):
    """scale * (clamp(floor(values / scale) + h + zero_point) - zero_point), learned through h.

    h = clip(sigmoid(V) * (zeta - gamma) + gamma, 0, 1), eq. 23; the derivative counts both clips'
    bounds as inside.
    """

    @staticmethod
    def forward(
        ctx: Any, sigmoid: Tensor, values: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid
    ) -> Tensor:
        """Return the soft-rounded values, [groups, elements]; keeps d out / d sigmoid."""
        out, slope = torch.empty_like(values), torch.empty_like(values)
        for part in parts(values):
            own, zeros = scale[part[0]], zero_point[part[0]]
            _soften(sigmoid[part], values[part], own, zeros, grid.bounds, slope[part], out[part])
        ctx.save_for_backward(slope)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of sigmoid alone: neither weight nor scale is trained."""
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None, None, None


@fused
def _penalise(sigmoid: Tensor, beta: float, total: Tensor, slope: Tensor) -> None:
    """Add the penalty to total and write its derivative by sigmoid to slope."""
    # 2 h - 1 before it is clipped to [-1, 1].
    signed = sigmoid * (2 * (ZETA - GAMMA))
    signed.add_(2 * GAMMA - 1)
    distance = signed.abs()
    rectified = distance.clamp(max=1)
    inside = distance.eq_(rectified)
    # distance^(beta - 1) through log2 and exp2, several times faster than pow here.
    power = torch.log2(rectified, out=slope).mul_(beta - 1).exp2_()
    total.add_(rectified.numel() - rectified.mul_(power).sum())
    torch.copysign(power.mul_(inside), signed, out=slope)
    slope.mul_(-2 * (ZETA - GAMMA) * beta)


class BinaryPenalty(torch.autograd.Function):
    """sum(1 - |2 h - 1|^beta), eq. 24, as a function of sigmoid(V)."""

    @staticmethod
    def forward(ctx: Any, sigmoid: Tensor, beta: float) -> Tensor:
        """Return the penalty, a scalar; its gradient is worked out on the way."""
        slope, total = torch.empty_like(sigmoid), sigmoid.new_zeros(())
        for part in parts(sigmoid):
            _penalise(sigmoid[part], beta, total, slope[part])
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return d penalty / d sigmoid."""
        (slope,) = ctx.saved_tensors
        return slope * grad, None


class AdaRound(WeightQuantizer):
    """W_hat = s * clamp(floor(W / s) + h(V)), with lambda * sum(1 - |2 h(V) - 1|^beta) added.

    V [groups, elements] starts where the soft weight equals the full-precision one; its hard
    rounding, V >= 0, is then round-to-nearest. The scale is never trained. The penalty is a sum
    over weights and reg_weight (lambda) is tied to a reconstruction loss that sums over channels.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        grid: Grid,
        ranges: Ranges,
        reg_weight: float,
        beta_start: float,
        beta_end: float,
        warmup: float,
        anneal: Literal["linear", "cosine"],
    ) -> None:
        super().__init__(weight, grid=grid, ranges=ranges)
        if anneal not in ("linear", "cosine"):
            raise ValueError(f"quant.anneal={anneal}: give linear (BRECQ) or cosine (AIMET)")
        if not 0 <= warmup < 1:
            raise ValueError(f"quant.warmup={warmup}: give a share of the iterations in [0, 1)")
        self.reg_weight = reg_weight
        self.beta_start, self.beta_end = beta_start, beta_end
        self.warmup = warmup
        self.anneal = anneal
        steps = grid.granularity.group(weight.detach()) / self.scale
        rest = steps - torch.floor(steps)
        v = -torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1)
        # On a tie h is 1/2 either way; its sign follows round-to-nearest, which rounds to even.
        up = torch.round(steps) > torch.floor(steps)
        v = torch.where(up, v.clamp(min=0), v.clamp(max=-torch.finfo(v.dtype).eps))
        self.v = nn.Parameter(v)
        self._sigmoid: Tensor | None = None

    def round(self, values: Tensor, scale: Tensor) -> Tensor:
        """Return scale * (clamp(floor(values / scale) + h(V)) - zero_point), [groups, elements].

        Hard, h(V) is 1 where V >= 0 and 0 elsewhere.
        """
        if not self.hard:
            # One for the weight and the penalty, which follows in the same iteration.
            self._sigmoid = torch.sigmoid(self.v)
            soft: Tensor = SoftRound.apply(self._sigmoid, values, scale, self.zero_point, self.grid)
            return soft
        up = (self.v >= 0).to(values.dtype)
        codes = torch.floor(values / scale) + up + self.zero_point
        return (codes.clamp_(self.grid.qmin, self.grid.qmax) - self.zero_point) * scale

    def beta(self, progress: float) -> float:
        """Return the annealed exponent at progress in [warmup, 1]."""
        t = (progress - self.warmup) / (1 - self.warmup)
        share = 1 - t if self.anneal == "linear" else (1 + math.cos(math.pi * t)) / 2
        return self.beta_end + (self.beta_start - self.beta_end) * share

    def regularizer(self, progress: float) -> Tensor | float:
        """Return lambda * sum(1 - |2 h(V) - 1|^beta), 0 during the warm-up."""
        sigmoid, self._sigmoid = self._sigmoid, None
        if progress < self.warmup:
            return 0.0
        if sigmoid is None:
            sigmoid = torch.sigmoid(self.v)
        penalty: Tensor = BinaryPenalty.apply(sigmoid, self.beta(progress))
        return self.reg_weight * penalty
