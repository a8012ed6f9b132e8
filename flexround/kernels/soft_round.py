"""AdaRound's soft rounding and its penalty (arXiv 2004.10568, eqs. 21-24) in few passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexround.grid import Codes, Grid
from flexround.kernels.chunking import fused, part_of, parts
from flexround.levels import neighbours

ZETA, GAMMA = 1.1, -0.1  # the rectified sigmoid's stretch, eq. 23


@fused
def _soften(
    sigmoid: Tensor, values: Tensor, scale: Tensor, zero_point: Tensor, codes: Codes,
    slope: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """Write the soft-rounded values to out and their derivative by sigmoid to slope."""
    low, high, table = codes
    up = torch.mul(sigmoid, ZETA - GAMMA, out=slope).add_(GAMMA)
    rectified = up.clamp(0, 1)
    inside = up.eq_(rectified)  # explicit and inclusive of the bounds, see to_levels
    if table is not None:
        lower, gap = neighbours(values / scale, table)
        gap.mul_(scale)
        torch.addcmul(lower.mul_(scale), rectified, gap, out=out)
        inside.mul_(gap).mul_(ZETA - GAMMA)
        return
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

    On a table of levels scale * (l + h g): the level below values / scale, and the gap above it.

    h = clip(sigmoid(V) * (zeta - gamma) + gamma, 0, 1), eq. 23; the derivative counts both clips'
    bounds as inside.
    """

    @staticmethod
    def forward(
        ctx: Any, sigmoid: Tensor, values: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid
    ) -> Tensor:
        """Return the soft-rounded values, [groups, elements]; keeps d out / d sigmoid."""
        out, slope, codes = torch.empty_like(values), torch.empty_like(values), grid.codes(values)
        for part in parts(values):
            own, zeros = part_of(scale, part[0]), part_of(zero_point, part[0])
            given = part_of(sigmoid, *part), part_of(values, *part)
            _soften(*given, own, zeros, codes, part_of(slope, *part), part_of(out, *part))
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
            _penalise(part_of(sigmoid, *part), beta, total, part_of(slope, *part))
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return d penalty / d sigmoid."""
        (slope,) = ctx.saved_tensors
        return slope * grad, None
