"""AdaRound: learn to round each weight down or up (arXiv 2004.10568, eqs. 20-25)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flexround.grid import Grid, row_chunks
from flexround.quantizers.base import WeightQuantizer
from flexround.ranges import Ranges

ZETA, GAMMA = 1.1, -0.1  # the rectified sigmoid's stretch, eq. 23


def rectified_sigmoid(v: Tensor) -> tuple[Tensor, Tensor]:
    """Return h(V) = clip(sigmoid(V) * (zeta - gamma) + gamma, 0, 1) and its derivative.

    The derivative counts the bounds of the clip as inside.
    """
    sigmoid = torch.sigmoid(v)
    h = sigmoid * (ZETA - GAMMA) + GAMMA
    slope = (sigmoid - sigmoid.square()).mul_(ZETA - GAMMA).mul_((h >= 0) & (h <= 1))
    return h.clamp_(0, 1), slope


class SoftRound(torch.autograd.Function):
    """scale * (clamp(floor(values / scale) + h(V) + zero_point) - zero_point), learned in V."""

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, values: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid
    ) -> Tensor:
        """Return the soft-rounded values, [groups, elements]; keeps d out / dV."""
        out, slope = torch.empty_like(values), torch.empty_like(values)
        for columns in row_chunks(values.shape[1], values.shape[0]):
            up, rise = rectified_sigmoid(v[:, columns])
            codes = torch.floor(values[:, columns] / scale).add_(zero_point).add_(up)
            # Explicit and inclusive of the bounds, see FakeQuantize.
            inside = (codes >= grid.qmin) & (codes <= grid.qmax)
            slope[:, columns] = rise.mul_(inside).mul_(scale)
            out[:, columns] = codes.clamp_(grid.qmin, grid.qmax).sub_(zero_point).mul_(scale)
        ctx.save_for_backward(slope)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of V alone: neither weight nor scale is trained."""
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None, None, None


class BinaryPenalty(torch.autograd.Function):
    """sum(1 - |2 h(V) - 1|^beta), eq. 24."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, beta: float) -> Tensor:
        """Return the penalty, a scalar; its gradient is worked out on the way."""
        slope = torch.empty_like(v)
        total = v.new_zeros(())
        for columns in row_chunks(v.shape[1], v.shape[0]):
            h, rise = rectified_sigmoid(v[:, columns])
            signed = h.mul_(2).sub_(1)
            distance = signed.abs()
            # distance^(beta - 1) through log and exp, several times faster than pow here.
            power = distance.log().mul_(beta - 1).exp_()
            total += distance.numel() - (power * distance).sum()
            slope[:, columns] = power.mul_(signed.sign_()).mul_(rise).mul_(-2 * beta)
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return d penalty / dV."""
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

    def round(self, values: Tensor, scale: Tensor) -> Tensor:
        """Return scale * (clamp(floor(values / scale) + h(V)) - zero_point), [groups, elements].

        Hard, h(V) is 1 where V >= 0 and 0 elsewhere.
        """
        if not self.hard:
            soft: Tensor = SoftRound.apply(self.v, values, scale, self.zero_point, self.grid)
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
        if progress < self.warmup:
            return 0.0
        penalty: Tensor = BinaryPenalty.apply(self.v, self.beta(progress))
        return self.reg_weight * penalty
