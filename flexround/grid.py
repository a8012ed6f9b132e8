"""The quantization grid: the one place where real values and integer codes meet.

Sources: uniform affine quantization as in FlexRound (arXiv 2306.00317, sec. 3.1) and LSQ's gradient
for the step size (arXiv 1902.08153, eq. 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flexround.fusion import fused, parts

MIN_BITS, MAX_BITS = 2, 8


class Granularity(Protocol):
    """How the weights of one layer share a scale."""

    def group(self, weight: Tensor) -> Tensor:
        """Return weight [out, in, *kernel] as [groups, elements], one shared scale a row."""
        ...


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole weight: [out, in, *kernel] -> [1, out * in * kernel]."""

    def group(self, weight: Tensor) -> Tensor:
        """Return weight [out, in, *kernel] as [1, elements]."""
        return weight.reshape(1, -1)


@dataclass(frozen=True)
class PerChannel:
    """One scale for each output channel: [out, in, *kernel] -> [out, in * kernel]."""

    def group(self, weight: Tensor) -> Tensor:
        """Return weight [out, in, *kernel] as [out, elements]."""
        return weight.reshape(weight.shape[0], -1)


@dataclass(frozen=True)
class PerGroup:
    """One scale for each group_size consecutive weights of an output channel."""

    group_size: int

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"group_size={self.group_size}: give a whole number of at least 1")

    def group(self, weight: Tensor) -> Tensor:
        """Return weight [out, in, *kernel] as [out * in * kernel / group_size, group_size].

        Raises:
            ValueError: when group_size does not divide the in * kernel weights of a channel.
        """
        elements = weight[0].numel()
        if elements % self.group_size:
            raise ValueError(
                f"group_size={self.group_size} does not divide the {elements} weights of an output "
                f"channel (weight {list(weight.shape)}); give a divisor of {elements}, "
                "or granularity=per_channel"
            )
        return weight.reshape(-1, self.group_size)


@dataclass(frozen=True)
class Grid:
    """The integers a weight may take and how its scales are shared.

    Asymmetric codes are 0 .. 2^bits - 1 around an integer zero point; symmetric codes are
    -2^(bits-1) .. 2^(bits-1) - 1 with zero point 0. A code q stands for scale * (q - zero_point).
    """

    bits: int
    symmetric: bool
    granularity: Granularity

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"bits={self.bits}: give a whole number from {MIN_BITS} to {MAX_BITS}")

    @property
    def qmin(self) -> int:
        """The smallest code."""
        return -int(2 ** (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        """The largest code."""
        return self.qmin + int(2**self.bits) - 1

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        return self.qmin, self.qmax

    def encode(self, values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Return the codes nearest to values [groups, elements]: integral, in range, same dtype.

        scale and zero_point are [groups, 1].
        """
        return torch.clamp(torch.round(values / scale) + zero_point, self.qmin, self.qmax)


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight as integers: codes [out, in, *kernel] int16, scale and zero_point [groups, 1]."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    grid: Grid

    def dequantize(self) -> Tensor:
        """Return scale * (codes - zero_point) in the dtype of scale, [out, in, *kernel]."""
        rows = self.grid.granularity.group(self.codes).to(self.scale.dtype)
        return ((rows - self.zero_point) * self.scale).reshape(self.codes.shape)


def to_levels(
    steps: Tensor, zero_point: Tensor, bounds: tuple[int, int], out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Round steps [groups, elements] in place; return (code - zero_point, inside).

    inside is 1 where the code needed no clamp and 0 elsewhere, in the type of steps and in its
    memory: on a CPU, arithmetic on booleans is several times slower. It counts the bounds as
    inside: torch.clamp's own gradient at a bound is 1, 0.5 or 0 depending on torch's version, and
    at 2 bits a third of all codes lie on one. Symmetric codes, which start below 0, have zero
    point 0.
    """
    low, high = bounds
    unclamped = torch.round(steps, out=steps)
    if low:
        levels = torch.clamp(unclamped, low, high, out=out)
    else:  # a pass less than to add the zero point and to take it off again
        levels = torch.maximum(unclamped, low - zero_point, out=out)
        torch.minimum(levels, high - zero_point, out=levels)
    return levels, unclamped.eq_(levels)


@fused
def _quantize(
    values: Tensor, shift: Tensor | None, scale: Tensor, zero_point: Tensor,
    bounds: tuple[int, int], inside: Tensor, out: Tensor,
) -> None:  # fmt: skip
    """Write the values on the grid to out and the clamp's mask to inside, [groups, elements]."""
    steps = torch.div(values, scale, out=inside)
    if shift is not None:
        steps.add_(shift)
    levels, _ = to_levels(steps, zero_point, bounds, out)
    levels.mul_(scale)


class FakeQuantize(torch.autograd.Function):
    """scale * (clamp(round(values / scale + shift) + z) - z), straight-through, LSQ for the scale.

    With u = values / scale, q = clamp(.) - z and [inside] of the explicit mask: d / d values =
    [inside], d / d shift = scale [inside], d / d scale = sum(q - u [inside]), d / d z =
    scale sum([inside] - 1).
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        shift: Tensor | None,
        grid: Grid,
    ) -> Tensor:
        """Return the values on the grid, [groups, elements]; shift has their shape."""
        inside, out = torch.empty_like(values), torch.empty_like(values)
        for rows, columns in parts(values):
            part, scales, zeros = (rows, columns), scale[rows], zero_point[rows]
            own = None if shift is None else shift[part]
            _quantize(values[part], own, scales, zeros, grid.bounds, inside[part], out[part])
        ctx.save_for_backward(values, scale, inside, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of values, scale, zero_point and shift."""
        values, scale, inside, out = ctx.saved_tensors
        by_values, by_scale, by_zero, by_shift = ctx.needs_input_grad[:4]
        passed = torch.empty_like(grad) if by_values or by_shift else None
        scales = torch.zeros_like(scale) if by_scale else None
        zeros = torch.zeros_like(scale) if by_zero else None
        for part in parts(grad):
            g, mask, rows = grad[part], inside[part], part[0]
            if passed is not None:
                torch.mul(g, mask, out=passed[part])
            if scales is not None:
                # The difference first: that of two sums would lose most of its digits.
                error = torch.addcmul(out[part], values[part], mask, value=-1)
                scales[rows] += error.mul_(g).sum(dim=1, keepdim=True).div_(scale[rows])
            if zeros is not None:
                zeros[rows] += (mask - 1).mul_(g).sum(dim=1, keepdim=True).mul_(scale[rows])
        shifts = passed * scale if by_shift and passed is not None else None
        return passed if by_values else None, scales, zeros, shifts, None


def fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Return values [groups, elements] rounded to the grid, differentiable in values and scale."""
    out: Tensor = FakeQuantize.apply(values, scale, zero_point, None, grid)
    return out
