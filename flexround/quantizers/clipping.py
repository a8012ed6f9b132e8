"""Learned weight clipping, OmniQuant's, alone and under FlexRound's division (arXiv 2308.13137)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flexround.grid import Grid
from flexround.importance import ImportanceSearch
from flexround.quantizers.base import WeightQuantizer, on_grid
from flexround.quantizers.flexround import FlexRound
from flexround.ranges import SCALE_FLOOR, Ranges


class ClippedRange(WeightQuantizer):
    """Base of methods that learn how much of a range is kept at either end.

    With l = sigmoid(b) low and h = sigmoid(g) high an asymmetric grid has s = (h - l) / (2^b - 1)
    and z = round(-l / s), whose rounding passes no gradient, as in the authors' code. A symmetric
    one has s = 2 max(-l, h) / (2^b - 1) and z = 0, a table of levels the scale that covers
    max(-l, h). low and high [groups, 1] are the ends of the
    first range, under ranges=min_max the weight's own. A subclass says where b and g start.
    """

    low: Tensor
    high: Tensor
    first_logit: float

    def _start(self, values: Tensor, ranges: Ranges) -> None:
        if isinstance(ranges, ImportanceSearch):
            raise ValueError(
                f"{type(self).__name__} learns the ends of a range with zero in its middle, and "
                "those of ranges=imatrix have it at one end; give ranges=min_max or ranges=lp"
            )
        low, high = ranges.ends(values, self.grid)
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.low_logit = nn.Parameter(torch.full_like(low, self.first_logit))
        self.high_logit = nn.Parameter(torch.full_like(high, self.first_logit))
        self.register_buffer("scale", self.dequantization_scale())
        self.register_buffer("zero_point", self.dequantization_zero_point())

    def clipped(self) -> tuple[Tensor, Tensor]:
        """Return (l, h), both [groups, 1]."""
        return torch.sigmoid(self.low_logit) * self.low, torch.sigmoid(self.high_logit) * self.high

    def dequantization_scale(self) -> Tensor:
        """Return s, [groups, 1]."""
        low, high = self.clipped()
        if self.grid.levels is not None:
            return self.grid.levels.cover(torch.maximum(-low, high))
        width = 2 * torch.maximum(-low, high) if self.grid.symmetric else high - low
        scale: Tensor = (width / (2**self.grid.bits - 1)).clamp(min=SCALE_FLOOR)
        return scale

    @torch.no_grad()
    def dequantization_zero_point(self) -> Tensor:
        """Return z, [groups, 1], whole numbers."""
        if self.grid.symmetric:
            return torch.zeros_like(self.low)
        return torch.round(-self.clipped()[0] / self.dequantization_scale())


class LWC(ClippedRange):
    """W_hat = s (clamp(round(W / s) + z) - z), s and z by way of the range's learned ends.

    Training starts at round-to-nearest on the clipped range.

    Args:
        weight: [out, in, *kernel].
        grid: the integers.
        ranges: gives the ends of the first range.
        first_logit: b and g at the start; 4, the authors', keeps 0.982 of each end.
    """

    def reference(self, weight: Tensor) -> Tensor:
        """Return the equation's W_hat in plain torch operations and autograd, same shape."""
        s, z = _scale_and_zero_point(self)
        steps = self.grid.granularity.group(weight) / s
        return on_grid(steps, z, s, self.grid).reshape(weight.shape)

    def __init__(self, weight: Tensor, *, grid: Grid, ranges: Ranges, first_logit: float) -> None:
        self.first_logit = first_logit
        super().__init__(weight, grid=grid, ranges=ranges)


class FlexRoundLWC(ClippedRange, FlexRound):
    """W_hat = s (clamp(round(W / (s S2 s3 s4)) + z) - z), s and z as under LWC.

    FlexRound whose step size is learned by way of the range's ends, which move the zero point too.
    """

    def reference(self, weight: Tensor) -> Tensor:
        """Return the equation's W_hat in plain torch operations and autograd, same shape."""
        s, z = _scale_and_zero_point(self)
        logs = [log for log in (self.log_s2, self.log_s3, self.log_s4) if log is not None]
        divided = weight / torch.exp(sum(logs[1:], logs[0]))  # W / (S2 * s3 * s4)
        steps = self.grid.granularity.group(divided) / s
        return on_grid(steps, z, s, self.grid).reshape(weight.shape)

    def __init__(
        self,
        weight: Tensor,
        *,
        grid: Grid,
        ranges: Ranges,
        use_s3: bool,
        use_s4: bool,
        first_logit: float,
        lr_ends: float,
    ) -> None:
        if lr_ends < 0:
            raise ValueError(f"quant.lr_ends={lr_ends}: give 0, which learns nothing, or more")
        self.first_logit, self.lr_ends = first_logit, lr_ends
        super().__init__(
            weight, grid=grid, ranges=ranges, learn_s1=False, use_s3=use_s3, use_s4=use_s4
        )

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return one group for the ends, whose logits have a rate of their own, and the rest's."""
        ends = [self.low_logit, self.high_logit]
        rest = [p for p in self.parameters() if p.requires_grad and all(p is not e for e in ends)]
        return [{"params": ends, "lr": self.lr_ends}, {"params": rest, "lr": lr}]


def _scale_and_zero_point(quantizer: ClippedRange) -> tuple[Tensor, Tensor]:
    """Return s and z of the equation, in torch's operations; only s has a gradient."""
    low = torch.sigmoid(quantizer.low_logit) * quantizer.low
    high = torch.sigmoid(quantizer.high_logit) * quantizer.high
    if quantizer.grid.levels is not None:
        s = quantizer.grid.levels.cover(torch.maximum(-low, high))
        return s, torch.zeros_like(s)
    steps = 2**quantizer.grid.bits - 1
    if quantizer.grid.symmetric:
        s = 2 * torch.maximum(-low, high) / steps
        return s, torch.zeros_like(s)
    s = (high - low) / steps
    return s, torch.round(-low / s).detach()
