"""FlexRound's element-wise division (arXiv 2306.00317, eq. 2 and prop. 3.1) in few passes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flexround.grid import Codes, Grid
from flexround.kernels.chunking import (
    WHOLE,
    compiling_now,
    fused,
    in_one,
    part_of,
    row_chunks,
)
from flexround.kernels.fake_quantize import to_levels

LOG2_E = math.log2(math.e)


def _divide_and_round(
    masked_quotient: Tensor | None, out: Tensor | None, w: Tensor, s2: Tensor, s3: Tensor | None,
    s4: Tensor | None, s: Tensor, zero_point: Tensor, codes: Codes,
) -> None:  # fmt: skip
    """Write W_hat to out and W / S [inside] to masked_quotient, [out, elements] as w and s2 are.

    masked_quotient is W / S where the clamp passes the gradient and 0 elsewhere, which is minus
    the derivative of W_hat by log S. Either is left out where it is None. s3 [out, 1] and
    s4 [1, elements] are logs to base 2 and negative, s2 is the natural log: powers of two are
    twice as fast as powers of e.
    """
    first = s2.new_zeros(()) if s3 is None else s3
    masked_quotient = torch.empty_like(w) if masked_quotient is None else masked_quotient
    scaled = torch.sub(first, s2, alpha=LOG2_E, out=masked_quotient)
    if s4 is not None:
        scaled.add_(s4)
    scaled.exp2_().mul_(w)
    grouped = scaled.view(len(s), -1)
    whole = None if out is None else out.view(len(s), -1)
    levels, inside = to_levels(grouped / s, zero_point, codes, whole)
    grouped.mul_(inside)
    levels.mul_(s)


_divide_and_round_fused = fused(_divide_and_round)


@fused
def _backward(
    recompute: Any, grad: Tensor, out: Tensor, s: Tensor,
    grad_log_s2: Tensor, grad_s1: Tensor, grad_log_s3: Tensor | None, grad_log_s4: Tensor | None,
) -> None:  # fmt: skip
    """Write d / d log S2 to grad_log_s2 [out, elements] and add to the sums that the others are.

    grad_log_s2 holds masked_quotient; where that has not been kept, recompute are the operands
    from which _divide_and_round works it out again.
    """
    if recompute is not None:
        _divide_and_round(grad_log_s2, None, *recompute)
    torch.addcmul(grad_log_s2.new_zeros(()), grad_log_s2, grad, value=-1, out=grad_log_s2)
    # The sum first: that of two sums would lose most of its digits.
    gap = torch.addcmul(grad_log_s2, out, grad).view(len(s), -1)
    grad_s1.add_(gap.sum(dim=1, keepdim=True).div_(s))
    if grad_log_s3 is not None:
        grad_log_s3.add_(grad_log_s2.sum(dim=1, keepdim=True))
    if grad_log_s4 is not None:
        grad_log_s4.add_(grad_log_s2.sum(dim=0, keepdim=True))


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
        masked_quotient = None if compiling_now() else torch.empty_like(out)
        operands, codes = _operands(*tensors), grid.codes(weight)
        for rows, groups in _parts(out, s1):
            part = None if masked_quotient is None else part_of(masked_quotient, rows)
            s, z = part_of(s1, groups), part_of(zero_point, groups)
            own = _rows_of(operands, rows)
            _divide_and_round_fused(part, part_of(out, rows), *own, s, z, codes)
        ctx.save_for_backward(*tensors, s1, zero_point, masked_quotient, out)
        ctx.codes = codes
        return out.view(weight.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of s1 and of the logs of S2, s3 and s4."""
        *tensors, s1, zero_point, masked_quotient, out = ctx.saved_tensors
        _, _, log_s3, log_s4 = tensors
        upstream = grad.contiguous().flatten(1)
        # What was kept is written over: a second backward pass would need it, and is refused.
        grad_log_s2 = torch.empty_like(upstream) if masked_quotient is None else masked_quotient
        grad_s1 = torch.zeros_like(s1)
        grad_log_s3 = None if log_s3 is None else upstream.new_zeros(len(upstream), 1)
        grad_log_s4 = None if log_s4 is None else upstream.new_zeros(1, upstream.shape[1])
        operands = None if masked_quotient is not None else _operands(*tensors)
        for rows, groups in _parts(upstream, s1):
            s, recompute = part_of(s1, groups), None
            if operands is not None:
                z = part_of(zero_point, groups)
                recompute = (*_rows_of(operands, rows), s, z, ctx.codes)
            grads = (
                part_of(grad_log_s2, rows),
                part_of(grad_s1, groups),
                None if grad_log_s3 is None else part_of(grad_log_s3, rows),
                grad_log_s4,
            )
            _backward(recompute, part_of(upstream, rows), part_of(out, rows), s, *grads)
        if grad_log_s3 is not None:
            grad_log_s3 = grad_log_s3.view(log_s3.shape)
        if grad_log_s4 is not None:
            grad_log_s4 = grad_log_s4.view(1, *grad.shape[1:]).sum_to_size(log_s4.shape)
        return None, grad_s1, None, grad_log_s2.view(grad.shape), grad_log_s3, grad_log_s4, None


Operands = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def _operands(
    weight: Tensor, log_s2: Tensor, log_s3: Tensor | None, log_s4: Tensor | None
) -> Operands:
    """Return _divide_and_round's w, s2, s3 and s4 of the whole weight [out, in, *kernel]."""
    s3 = None if log_s3 is None else log_s3.flatten(1) * -LOG2_E
    s4 = None
    if log_s4 is not None:
        s4 = log_s4.expand(1, *weight.shape[1:]).reshape(1, -1) * -LOG2_E
    return weight.flatten(1), log_s2.flatten(1), s3, s4


def _rows_of(operands: Operands, rows: slice) -> Operands:
    """Return rows of w, s2 and s3, and s4, which all rows share."""
    w, s2, s3, s4 = operands
    return part_of(w, rows), part_of(s2, rows), None if s3 is None else part_of(s3, rows), s4


def _parts(rows: Tensor, s1: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield parts of rows [out, elements] with the groups of s1 [groups, 1] that they hold."""
    if in_one(rows):
        yield WHOLE, WHOLE
        return
    per_row = len(s1) // len(rows)  # 0 where all channels share one scale
    for part in row_chunks(*rows.shape):
        yield part, slice(part.start * per_row, part.stop * per_row) if per_row else WHOLE
