"""FlexRound: learnable rounding by element-wise division (arXiv 2306.00317, eq. 2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flexround.grid import Grid, row_chunks
from flexround.quantizers.base import WeightQuantizer
from flexround.ranges import Ranges


class ElementwiseDivision(torch.autograd.Function):
    """s1 * (clamp(round(W / (s1 * S)) + zero_point) - zero_point) with S = exp(S2 + s3 + s4) logs.

    One pass each way instead of the twenty that autograd would make over the weight. With u the
    unrounded and q the clamped step, gradients are the straight-through ones of Prop. 3.1 in the
    log domain: d / d log S = -s1 u [inside], d / d s1 = sum(q - u [inside]).
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        s1: Tensor,
        zero_point: Tensor,
        log_s2: Tensor,
        log_s3: Tensor | None,
        log_s4: Tensor | None,
        grid: Grid,
    ) -> Tensor:
        """Return W_hat [out, in, *kernel] for s1 and zero_point [groups, 1]."""
        steps, out = torch.empty_like(weight), torch.empty_like(weight)
        for rows, groups in _parts(weight, s1):
            log_divisor = log_s2[rows].clone()
            if log_s3 is not None:
                log_divisor += log_s3[rows]
            if log_s4 is not None:
                log_divisor += log_s4
            scaled = log_divisor.neg_().exp_().mul_(weight[rows])
            s, z = s1[groups], zero_point[groups]
            u = torch.div(scaled.view(len(s), -1), s, out=steps[rows].view(len(s), -1))
            level = torch.round(u, out=out[rows].view(len(s), -1))
            level.add_(z).clamp_(grid.qmin, grid.qmax).sub_(z).mul_(s)
        ctx.save_for_backward(steps, s1, zero_point, log_s3, log_s4)
        ctx.grid = grid
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of s1 and of the logs of S2, s3 and s4."""
        steps, s1, zero_point, log_s3, log_s4 = ctx.saved_tensors
        grid: Grid = ctx.grid
        grad = grad.contiguous()
        by_s1 = torch.zeros_like(s1)
        by_log = torch.empty_like(grad)
        by_s4 = None if log_s4 is None else torch.zeros_like(log_s4)
        for rows, groups in _parts(grad, s1):
            s, z = s1[groups], zero_point[groups]
            u, g = steps[rows].view(len(s), -1), grad[rows].view(len(s), -1)
            code = torch.round(u).add_(z)
            # Explicit and inclusive of the bounds, see FakeQuantize.
            inside = (code >= grid.qmin) & (code <= grid.qmax)
            kept = u * inside
            level = code.clamp_(grid.qmin, grid.qmax).sub_(z)
            by_s1[groups] += level.sub_(kept).mul_(g).sum(dim=1, keepdim=True)
            part = torch.mul(kept.mul_(g), -s, out=by_log[rows].view(len(s), -1))
            if by_s4 is not None:
                by_s4 += part.view(grad[rows].shape).sum_to_size(by_s4.shape)
        by_s3 = None if log_s3 is None else by_log.sum_to_size(log_s3.shape)
        return None, by_s1, None, by_log, by_s3, by_s4, None


def _parts(weight: Tensor, s1: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield output channels with the groups of s1 [groups, 1] that they hold."""
    per_row = len(s1) // len(weight)  # 0 where all channels share one scale
    for rows in row_chunks(len(weight), weight[0].numel()):
        yield rows, slice(rows.start * per_row, rows.stop * per_row) if per_row else slice(None)


class FlexRound(WeightQuantizer):
    """W_hat = s1 * round(W / (s1 * S2 * s3 * s4)).

    s1 is the step size [groups, 1]; S2 has the weight's shape [out, in, *kernel], s3 is
    [out, 1, *1] and s4, for convolutions only, [1, in, *1]. All live in the log domain, which keeps
    them positive, and start at zero, log_s1 relative to the scale that the ranges chose: training
    starts at round-to-nearest to the last bit. Only s1 multiplies the codes afterwards.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        grid: Grid,
        ranges: Ranges,
        learn_s1: bool,
        use_s3: bool,
        use_s4: bool,
    ) -> None:
        super().__init__(weight, grid=grid, ranges=ranges)
        ones = (1,) * (weight.dim() - 2)
        new = weight.detach().new_zeros
        self.log_s1 = nn.Parameter(new(self.scale.shape), requires_grad=learn_s1)
        self.log_s2 = nn.Parameter(new(weight.shape))
        self.log_s3 = nn.Parameter(new(weight.shape[0], 1, *ones)) if use_s3 else None
        # A Linear's input scale would be s4 too, but eq. 2 gives it to convolutions alone.
        has_s4 = use_s4 and weight.dim() > 2
        self.log_s4 = nn.Parameter(new(1, weight.shape[1], *ones)) if has_s4 else None

    def dequantization_scale(self) -> Tensor:
        """Return s1, [groups, 1]."""
        return self.scale * torch.exp(self.log_s1)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized weight, same shape."""
        out: Tensor = ElementwiseDivision.apply(
            weight.contiguous(),
            self.dequantization_scale(),
            self.zero_point,
            self.log_s2,
            self.log_s3,
            self.log_s4,
            self.grid,
        )
        return out
