"""AdaRound: learn to round each weight down or up (arXiv 2004.10568, eqs. 20-25).

The equation is eq. 22, h eq. 23 and the penalty eq. 24.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from flexround.grid import Grid
from flexround.kernels.soft_round import GAMMA, ZETA, BinaryPenalty, SoftRound
from flexround.quantizers.base import WeightQuantizer
from flexround.ranges import Ranges


class AdaRound(WeightQuantizer):
    """W_hat = s * clamp(floor(W / s) + h(V)), with lambda * sum(1 - |2 h(V) - 1|^beta) added.

    On a table of levels it is s * (l + h(V) g), l the level below W / s and g the gap above it.

    V [groups, elements] starts where the soft weight equals the full-precision one; its hard
    rounding, V >= 0, is then round-to-nearest. The scale is never trained. The penalty is a sum
    over weights and reg_weight (lambda) is tied to a reconstruction loss that sums over channels.
    """

    def reference(self, weight: Tensor) -> Tensor:
        """Return the equation's W_hat in plain torch operations and autograd, same shape.

        Soft, h(V) is eq. 23's rectified sigmoid; hard, it is 1 where V >= 0 and 0 elsewhere.
        """
        if self.hard:
            h = (self.v >= 0).to(weight.dtype)
        else:
            h = torch.clamp(torch.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA, 0, 1)
        if self.grid.levels is not None:
            lower, gap = self.grid.neighbours(self.grid.granularity.group(weight) / self.scale)
            return ((lower + h * gap) * self.scale).reshape(weight.shape)
        codes = torch.floor(self.grid.granularity.group(weight) / self.scale) + h + self.zero_point
        # Codes lie on a bound only where h is clamped itself: no gradient is at stake there.
        codes = torch.clamp(codes, self.grid.qmin, self.grid.qmax)
        return ((codes - self.zero_point) * self.scale).reshape(weight.shape)

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
        if reg_weight < 0:
            raise ValueError(f"quant.reg_weight={reg_weight}: give 0 or more")
        for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
            if not beta > 1:
                raise ValueError(
                    f"quant.{name}={beta}: give a number above 1; up to 1 the penalty has no "
                    "slope where a weight lies midway"
                )
        self.reg_weight = reg_weight
        self.beta_start, self.beta_end = beta_start, beta_end
        self.warmup = warmup
        self.anneal = anneal
        steps = grid.granularity.group(weight.detach()) / self.scale
        lower, gap = grid.neighbours(steps)
        rest = torch.where(gap > 0, (steps - lower) / gap, 0.0)
        v = -torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1)
        # On a tie h is 1/2 either way; its sign follows round-to-nearest, which rounds to even.
        ones, zeros = torch.ones_like(self.scale), torch.zeros_like(self.scale)
        nearest = torch.round(steps) if grid.levels is None else grid.nearest(steps, ones, zeros)
        up = nearest > lower
        v = torch.where(up, v.clamp(min=0), v.clamp(max=-torch.finfo(v.dtype).eps))
        self.v = nn.Parameter(v)
        self._sigmoid: Tensor | None = None

    def round(self, values: Tensor, scale: Tensor) -> Tensor:
        """Return scale * (clamp(floor(values / scale) + h(V) + z) - z), [groups, elements].

        Hard, h(V) is 1 where V >= 0 and 0 elsewhere.
        """
        if not self.hard:
            # One for the weight and the penalty, which follows in the same iteration.
            self._sigmoid = torch.sigmoid(self.v)
            soft: Tensor = SoftRound.apply(self._sigmoid, values, scale, self.zero_point, self.grid)
            return soft
        up = (self.v >= 0).to(values.dtype)
        if self.grid.levels is not None:
            lower, gap = self.grid.neighbours(values / scale)
            return torch.addcmul(lower, up, gap) * scale
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
