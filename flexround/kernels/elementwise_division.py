"""FlexRound's element-wise division (arXiv 2306.00317, eq. 2 and prop. 3.1) in few passes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from flexround.grid import Grid
from flexround.kernels.chunking import at_once, compiling_now, fused, row_chunks
from flexround.kernels.fake_quantize import to_levels

LOG2_E = math.log2(math.e)


def _divide(
    passing: Tensor | None, out: Tensor | None, w: Tensor, s2: Tensor, s3: Tensor | None,
    s4: Tensor | None, s: Tensor, zero_point: Tensor, bounds: tuple[int, int],
) -> None:  # fmt: skip
    """Write W_hat to out and W / S [inside] to passing, both [out, elements] as w and s2 are.

    Either is left out where it is None. s3 [out, 1] and s4 [1, elements] are logs to base 2 and
    negative, s2 is the natural log: powers of two are twice as fast as powers of e.
    """
    first = s2.new_zeros(()) if s3 is None else s3
    passing = torch.empty_like(w) if passing is None else passing
    scaled = torch.sub(first, s2, alpha=LOG2_E, out=passing)
    if s4 is not None:
        scaled.add_(s4)
    scaled.exp2_().mul_(w)
    grouped = scaled.view(len(s), -1)
    whole = None if out is None else out.view(len(s), -1)
    levels, inside = to_levels(grouped / s, zero_point, bounds, whole)
    grouped.mul_(inside)
    levels.mul_(s)


_forward = fused(_divide)


@fused
def _backward(
    again: Any, grad: Tensor, out: Tensor, s: Tensor,
    by_log: Tensor, by_s1: Tensor, by_s3: Tensor | None, by_s4: Tensor | None,
) -> None:  # fmt: skip
    """Write d / d log S2 to by_log [out, elements] and add to the sums that the others are.

    by_log holds _divide's passing; where it has not been kept, _divide of again works it out.
    """
    if again is not None:
        _divide(by_log, None, *again)
    torch.addcmul(by_log.new_zeros(()), by_log, grad, value=-1, out=by_log)
    # The sum first: that of two sums would lose most of its digits.
    gap = torch.addcmul(by_log, out, grad).view(len(s), -1)
    by_s1.add_(gap.sum(dim=1, keepdim=True).div_(s))
    if by_s3 is not None:
        by_s3.add_(by_log.sum(dim=1, keepdim=True))
    if by_s4 is not None:
        by_s4.add_(by_log.sum(dim=0, keepdim=True))


class ElementwiseDivision(torch.autograd.Function):
    """s1 * (clamp(round(W / (s1 * S)) + zero_point) - zero_point) with S = exp(S2 + s3 + s4) logs.

    With [inside] of the clamp's explicit mask, gradients are the straight-through ones of
    Prop. 3.1 in the log domain: d / d log S = -W / S [inside], d / d s1 =
    sum(W_hat - W / S [inside]) / s1.
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
        tensors = (weight, log_s2, log_s3, log_s4)
        out = torch.empty_like(weight).flatten(1)
        # A whole weight's worth of memory, which a compiled pass does not need to be fast.
        passing = None if compiling_now() else torch.empty_like(out)
        for rows, groups in _parts(out, s1):
            kept = None if passing is None else passing[rows]
            s, z = s1[groups], zero_point[groups]
            _forward(kept, out[rows], *_operands(tensors, rows), s, z, grid.bounds)
        ctx.save_for_backward(*tensors, s1, zero_point, passing, out)
        ctx.grid = grid
        return out.view(weight.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of s1 and of the logs of S2, s3 and s4."""
        *tensors, s1, zero_point, passing, out = ctx.saved_tensors
        _, _, log_s3, log_s4 = tensors
        upstream = grad.contiguous().flatten(1)
        # What was kept is written over: a second backward pass would need it, and is refused.
        by_log = torch.empty_like(upstream) if passing is None else passing
        by_s1 = torch.zeros_like(s1)
        by_s3 = None if log_s3 is None else upstream.new_zeros(len(upstream), 1)
        by_s4 = None if log_s4 is None else upstream.new_zeros(1, upstream.shape[1])
        for rows, groups in _parts(upstream, s1):
            s, z = s1[groups], zero_point[groups]
            again = None
            if passing is None:
                again = (*_operands(tensors, rows), s, z, ctx.grid.bounds)
            own = None if by_s3 is None else by_s3[rows]
            _backward(again, upstream[rows], out[rows], s, by_log[rows], by_s1[groups], own, by_s4)
        if by_s3 is not None:
            by_s3 = by_s3.view(log_s3.shape)
        if by_s4 is not None:
            by_s4 = by_s4.view(1, *grad.shape[1:]).sum_to_size(log_s4.shape)
        return None, by_s1, None, by_log.view(grad.shape), by_s3, by_s4, None


def _operands(tensors: Sequence[Any], rows: slice) -> tuple[Tensor | None, ...]:
    """Return _divide's w, s2, s3 and s4 for rows of (weight, log_s2, log_s3, log_s4)."""
    weight, log_s2, log_s3, log_s4 = tensors
    s3 = None if log_s3 is None else log_s3[rows].flatten(1) * -LOG2_E
    s4 = None
    if log_s4 is not None:
        s4 = log_s4.expand(1, *weight.shape[1:]).reshape(1, -1) * -LOG2_E
    return weight[rows].flatten(1), log_s2[rows].flatten(1), s3, s4


def _parts(rows: Tensor, s1: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield parts of rows [out, elements] with the groups of s1 [groups, 1] that they hold."""
    if at_once(rows.device):
        yield slice(None), slice(None)
        return
    per_row = len(s1) // len(rows)  # 0 where all channels share one scale
    for part in row_chunks(*rows.shape):
        yield part, slice(part.start * per_row, part.stop * per_row) if per_row else slice(None)
