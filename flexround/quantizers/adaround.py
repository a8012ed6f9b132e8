"""AdaRound: learn to round each weight down or up (arXiv 2004.10568, eqs. 20-25)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flexround.grid import Grid
from flexround.quantizers.base import WeightQuantizer
from flexround.ranges import Ranges

ZETA, GAMMA = 1.1, -0.1  # the rectified sigmoid's stretch, eq. 23


class RectifiedSigmoid(torch.autograd.Function):
    """h(V) = clip(sigmoid(V) * (zeta - gamma) + gamma, 0, 1), its bounds counted as inside."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        """Return h(V), same shape."""
        sigmoid = torch.sigmoid(v)
        h = sigmoid * (ZETA - GAMMA) + GAMMA
        inside = (h >= 0) & (h <= 1)
        ctx.save_for_backward(sigmoid, inside)
        return h.clamp_(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return grad * h'(V)."""
        sigmoid, inside = ctx.saved_tensors
        slope: Tensor = inside * sigmoid * (1 - sigmoid) * (ZETA - GAMMA)
        return grad * slope


class ClampCodes(torch.autograd.Function):
    """Clamp to [qmin, qmax]; gradient 1 inside and at the bounds, 0 outside."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, qmin: int, qmax: int) -> Tensor:
        """Return the clamped codes, same shape."""
        ctx.save_for_backward((codes >= qmin) & (codes <= qmax))
        return codes.clamp(qmin, qmax)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Return grad inside the range."""
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


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
        self.v = nn.Parameter(-torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1))

    def _up(self) -> Tensor:
        if self.hard:
            return (self.v >= 0).to(self.v.dtype)
        up: Tensor = RectifiedSigmoid.apply(self.v)
        return up

    def round(self, values: Tensor, scale: Tensor) -> Tensor:
        """Return scale * (clamp(floor(values / scale) + h(V)) - zero_point), [groups, elements]."""
        unclamped = torch.floor(values / scale) + self._up() + self.zero_point
        codes = ClampCodes.apply(unclamped, self.grid.qmin, self.grid.qmax)
        out: Tensor = (codes - self.zero_point) * scale
        return out

    def codes(self, values: Tensor, scale: Tensor) -> Tensor:
        """Return clamp(floor(values / scale) + [V >= 0]), [groups, elements]."""
        up = (self.v >= 0).to(values.dtype)
        unclamped = torch.floor(values / scale) + up + self.zero_point
        return unclamped.clamp(self.grid.qmin, self.grid.qmax)

    def beta(self, progress: float) -> float:
        """Return the annealed exponent at progress in [warmup, 1]."""
        t = (progress - self.warmup) / (1 - self.warmup)
        share = 1 - t if self.anneal == "linear" else (1 + math.cos(math.pi * t)) / 2
        return self.beta_end + (self.beta_start - self.beta_end) * share

    def regularizer(self, progress: float) -> Tensor | float:
        """Return lambda * sum(1 - |2 h(V) - 1|^beta), 0 during the warm-up."""
        if progress < self.warmup:
            return 0.0
        distance = (2 * self._up() - 1).abs()
        return self.reg_weight * (1 - distance.pow(self.beta(progress))).sum()
