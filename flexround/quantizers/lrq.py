"""LRQ: FlexRound's divisor as a low-rank matrix with a row and a column (arXiv 2407.11534).

The divisor and where each part starts are those of the authors' code (FlexRound_LRQ,
UniformAffineQuantizer.py), whose rule for the rank is rank_rule=code: see rank_of.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from flexround.grid import Grid
from flexround.kernels.elementwise_division import ElementwiseDivision
from flexround.quantizers.base import WeightQuantizer, on_grid
from flexround.ranges import Ranges
from flexround.utils.tensor_float32 import tensor_float32

RankRule = Literal["fixed", "code"]


class LRQ(WeightQuantizer):
    """W_hat = s1 * round(W / (s1 * exp(L2 U2 + r2 + c2))), for linear layers.

    L2 [out, rank], r2 [out, 1] and c2 [1, in] start at zero, U2 [rank, in] at random, log_s1
    relative to the ranges' scale at zero: training starts at round-to-nearest to the last bit.
    Where rank_of says so, a full matrix L2 [out, in] stands in the place of L2 U2. Only
    s1 [groups, 1] multiplies the codes afterwards.
    """

    def reference(self, weight: Tensor) -> Tensor:
        """Return the equation's W_hat in plain torch operations and autograd, same shape."""
        product = self.l2 if self.u2 is None else self.l2 @ self.u2
        divided = weight / torch.exp(product + self.r2 + self.c2)
        s1 = self.grid.admitted(self.scale * torch.exp(self.log_s1))
        steps = self.grid.granularity.group(divided) / s1
        return on_grid(steps, self.zero_point, s1, self.grid).reshape(weight.shape)

    def __init__(
        self,
        weight: Tensor,
        *,
        grid: Grid,
        ranges: Ranges,
        rank: int,
        rank_rule: RankRule,
        seed: int,
    ) -> None:
        """Draw U2 by seed.

        Raises:
            ValueError: for a convolution, a rank below 1, or one that saves nothing.
        """
        if weight.dim() != 2:
            raise ValueError(
                f"LRQ is for linear layers, this weight is {list(weight.shape)}; give "
                "quant=flexround, or a model without convolutions"
            )
        if rank_rule not in ("fixed", "code"):
            raise ValueError(f"quant.rank_rule={rank_rule}: give fixed or code")
        if rank < 1:
            raise ValueError(f"quant.rank={rank}: give a whole number of at least 1")
        super().__init__(weight, grid=grid, ranges=ranges)
        out, into = weight.shape
        chosen = rank_of(weight.shape, rank, rank_rule)
        if chosen is not None and chosen * (out + into) >= out * into:
            raise ValueError(
                f"rank {chosen} saves nothing on a weight {list(weight.shape)}; give quant.rank "
                f"below {math.ceil(out * into / (out + into))}, or quant=flexround"
            )
        new = weight.detach().new_zeros
        self.log_s1 = nn.Parameter(new(self.scale.shape))
        self.r2, self.c2 = nn.Parameter(new(out, 1)), nn.Parameter(new(1, into))
        self.l2 = nn.Parameter(new(out, into if chosen is None else chosen))
        self.u2: nn.Parameter | None = None
        if chosen is not None:
            # Kaiming's uniform with a = sqrt(5), as torch initialises a linear layer.
            bound = 1 / math.sqrt(into)
            generator = torch.Generator().manual_seed(seed)
            u2 = torch.empty(chosen, into).uniform_(-bound, bound, generator=generator)
            self.u2 = nn.Parameter(u2.to(weight))

    def dequantization_scale(self) -> Tensor:
        """Return s1, [groups, 1]."""
        return self.grid.admitted(self.scale * torch.exp(self.log_s1))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized weight, same shape."""
        # A divisor of bfloat16's 8 bits, or of TF32's 11, would be none.
        with torch.autocast(weight.device.type, enabled=False), tensor_float32(False):
            log_divisor = self.l2 if self.u2 is None else self.l2 @ self.u2
        out: Tensor = ElementwiseDivision.apply(
            weight.contiguous(),
            self.dequantization_scale(),
            self.zero_point,
            log_divisor,
            self.r2,
            self.c2,
            self.grid,
        )
        return out


def rank_of(shape: torch.Size, rank: int, rule: RankRule) -> int | None:
    """Return the rank for a weight [out, in], or None where the divisor is a full matrix.

    "fixed" is rank for every layer. "code" is what the authors' code does whatever the rank: a full
    matrix for some shapes, 2048 for the largest, 1024 for the others.
    """
    if rule == "fixed":
        return rank
    out, into = shape
    if (out <= 4096 < into) or (into <= 4096 < out) or (out == into == 8192):
        return None
    return 2048 if min(out, into) >= 8192 else 1024
