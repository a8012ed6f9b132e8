"""Round-to-nearest with straight-through gradients, in few passes over a weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexround.grid import Codes, Grid
from flexround.kernels.chunking import fused, part_of, parts
from flexround.levels import Table, gaps, nearest_places


def to_levels(
    steps: Tensor,
    zero_point: Tensor,
    codes: Codes,
    out: Tensor | None = None,
    clamp_first: bool = False,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Round steps [groups, elements] in place; return (level, inside).

    A level is code - zero_point, or that of the table. shift is added to steps first, in units of
    the gap that each lies in. With clamp_first, steps that would round to a bound from beyond it
    count as clamped.

    inside is 1 where the code needed no clamp and 0 elsewhere, in the type of steps and in its
    memory: on a CPU, arithmetic on booleans is several times slower. It counts the bounds as
    inside: torch.clamp's own gradient at a bound is 1, 0.5 or 0 depending on torch's version, and
    at 2 bits a third of all codes lie on one. Symmetric codes, which start below 0, have zero
    point 0.
    """
    low, high, table = codes
    if table is not None:
        return _to_table(steps, table, out, clamp_first, shift)
    if shift is not None:
        steps.add_(shift)
    unclamped = steps if clamp_first else torch.round(steps, out=steps)
    if low:
        levels = torch.clamp(unclamped, low, high, out=out)
    else:  # a pass less than to add the zero point and to take it off again
        levels = torch.maximum(unclamped, low - zero_point, out=out)
        torch.minimum(levels, high - zero_point, out=levels)
    inside = unclamped.eq_(levels)
    return (levels.round_() if clamp_first else levels), inside


def _to_table(
    steps: Tensor, table: Table, out: Tensor | None, clamp_first: bool, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return what to_levels does, by a table of levels.

    Half a gap's shift to either side leads to one of the two levels that a step lies between.
    """
    levels, last = table.levels, len(table.levels) - 1
    places = nearest_places(steps, table)
    held = places.clamp(0, last)
    if shift is not None:
        # From the nearest level on: without a shift it is that level to the last bit.
        rest = (steps - levels[held]) / gaps(steps, table)
        places = held + torch.round(rest + shift).nan_to_num_(0).long()
        held = places.clamp(0, last)
    # 0 * steps: what is no number stays none.
    found = torch.add(levels[held], steps, alpha=0.0, out=out)
    within = (steps >= levels[0]) & (steps <= levels[-1])
    inside = within if clamp_first else places == held
    return found, steps.copy_(inside)


@fused
def _quantize(
    values: Tensor, shift: Tensor | None, scale: Tensor, zero_point: Tensor,
    codes: Codes, inside: Tensor, out: Tensor, clamp_first: bool,
) -> None:  # fmt: skip
    """Write the values on the grid to out and the clamp's mask to inside, [groups, elements]."""
    steps = torch.div(values, scale, out=inside)
    levels, _ = to_levels(steps, zero_point, codes, out, clamp_first, shift)
    levels.mul_(scale)


class FakeQuantize(torch.autograd.Function):
    """scale * (clamp(round(values / scale + shift) + z) - z), straight-through, LSQ for the scale.

    With u = values / scale, q = clamp(.) - z and [inside] of the explicit mask: d / d values =
    [inside], d / d shift = scale [inside], d / d scale = sum(q - u [inside]), d / d z =
    scale sum([inside] - 1). On a table of levels q is a level, and shift is in units of the gap
    that u lies in, which its derivative has as a factor.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        shift: Tensor | None,
        grid: Grid,
        clamp_first: bool = False,
    ) -> Tensor:
        """Return the values on the grid, [groups, elements]; shift has their shape.

        clamp_first clamps before it rounds: the same values, and a mask without the half steps
        beyond the bounds.
        """
        inside, out = torch.empty_like(values), torch.empty_like(values)
        codes = grid.codes(values)
        for rows, columns in parts(values):
            own = None if shift is None else part_of(shift, rows, columns)
            _quantize(
                part_of(values, rows, columns), own, part_of(scale, rows),
                part_of(zero_point, rows), codes, part_of(inside, rows, columns),
                part_of(out, rows, columns), clamp_first,
            )  # fmt: skip
        ctx.save_for_backward(values, scale, inside, out)
        ctx.table = codes.table
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of values, scale, zero_point and shift."""
        values, scale, inside, out = ctx.saved_tensors
        for_values, for_scale, for_zero_point, for_shift = ctx.needs_input_grad[:4]
        grad_values = torch.empty_like(grad) if for_values or for_shift else None
        grad_scale = torch.zeros_like(scale) if for_scale else None
        grad_zero_point = torch.zeros_like(scale) if for_zero_point else None
        for part in parts(grad):
            g, mask, own = part_of(grad, *part), part_of(inside, *part), part_of(scale, part[0])
            if grad_values is not None:
                torch.mul(g, mask, out=part_of(grad_values, *part))
            if grad_scale is not None:
                # The difference first: that of two sums would lose most of its digits.
                error = torch.addcmul(part_of(out, *part), part_of(values, *part), mask, value=-1)
                sums = error.mul_(g).sum(dim=1, keepdim=True).div_(own)
                part_of(grad_scale, part[0]).add_(sums)
            if grad_zero_point is not None:
                outside = (mask - 1).mul_(g).sum(dim=1, keepdim=True)
                part_of(grad_zero_point, part[0]).add_(outside.mul_(own))
        grad_shift = grad_values * scale if for_shift and grad_values is not None else None
        if grad_shift is not None and ctx.table is not None:
            grad_shift *= gaps(values / scale, ctx.table)
        return (
            grad_values if for_values else None, grad_scale, grad_zero_point, grad_shift, None, None
        )  # fmt: skip


def fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Return values [groups, elements] rounded to the grid, differentiable in values and scale."""
    out: Tensor = FakeQuantize.apply(values, scale, zero_point, None, grid)
    return out


def traceable_fake_quantize(values: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return scale * clamp(round(values / scale), low, high), values of any shape.

    By operations that torch.export can follow with any number of samples: pieces of a tensor and a
    function with its own gradient it cannot. The gradients are those of FakeQuantize.
    """
    steps = values / scale
    rounded = steps.detach().round()
    levels = torch.minimum(torch.maximum(rounded, low), high)
    # 0, with the gradient of steps inside the bounds; torch.clamp's at them is its version's.
    inside = torch.where(rounded == levels, steps - steps.detach(), 0.0)
    return (levels + inside) * scale
