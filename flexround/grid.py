"""The quantization grid: the one place where real values and integer codes meet.

Sources: uniform affine quantization as in FlexRound (arXiv 2306.00317, sec. 3.1) and LSQ's gradient
for the step size (arXiv 1902.08153, eq. 3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flexround.levels import Levels, Table, nearest_places, neighbours

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


class Codes(NamedTuple):
    """What a kernel needs of a grid: its smallest and largest code, and its levels if it has any.

    Attributes:
        low: the smallest code.
        high: the largest code.
        table: the levels of the codes, in their order; None where codes are the levels themselves.
    """

    low: int
    high: int
    table: Table | None = None


@dataclass(frozen=True)
class Grid:
    """The codes a weight may take, what they stand for, and how its scales are shared.

    Asymmetric codes are 0 .. 2^bits - 1 around an integer zero point; symmetric codes are
    -2^(bits-1) .. 2^(bits-1) - 1 with zero point 0. A code q stands for scale * (q - zero_point).

    With levels, a code is the place of a level in their table, counted from that of 0, and stands
    for scale * level; there is no zero point.
    """

    bits: int
    symmetric: bool
    granularity: Granularity
    levels: Levels | None = None

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"bits={self.bits}: give a whole number from {MIN_BITS} to {MAX_BITS}")
        if self.levels is not None:
            self._check_levels(self.levels)

    def _check_levels(self, levels: Levels) -> None:
        if self.bits != levels.bits:
            raise ValueError(
                f"grid={levels.name} has codes of {levels.bits} bits, not bits={self.bits}; give "
                f"bits={levels.bits}, or grid=integer"
            )
        if not self.symmetric:
            raise ValueError(f"grid={levels.name} has no zero point; give symmetric=true")
        if levels.block is not None and self.granularity != PerGroup(levels.block):
            raise ValueError(
                f"grid={levels.name} has a scale for each {levels.block} weights; give "
                f"granularity=per_group group_size={levels.block}, or grid=fp4"
            )

    @property
    def qmin(self) -> int:
        """The smallest code."""
        if self.levels is not None:
            return self.levels.lowest
        return -int(2 ** (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        """The largest code."""
        count = len(self.levels.values) if self.levels is not None else int(2**self.bits)
        return self.qmin + count - 1

    @property
    def width(self) -> float:
        """From the lowest level to the highest, in units of the scale."""
        if self.levels is not None:
            return self.levels.values[-1] - self.levels.values[0]
        return self.qmax - self.qmin

    def codes(self, like: Tensor) -> Codes:
        """Return the codes for kernels that work in the type of like, where it lies."""
        table = None if self.levels is None else self.levels.table(like)
        return Codes(self.qmin, self.qmax, table)

    def encode(self, values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Return the codes nearest to values [groups, elements]: integral, in range, same dtype.

        scale and zero_point are [groups, 1].
        """
        if self.levels is not None:
            places = nearest_places(values / scale, self.levels.table(values))
            return (places + self.qmin).clamp_(self.qmin, self.qmax).to(values.dtype)
        return torch.clamp(torch.round(values / scale) + zero_point, self.qmin, self.qmax)

    def decode(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Return what codes [groups, elements] stand for, in the dtype of scale."""
        if self.levels is None:
            return (codes - zero_point) * scale
        return self.levels.table(scale).levels[(codes - self.qmin).long()] * scale

    def nearest(self, values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Return the points of the grid nearest to values [groups, elements]."""
        return self.decode(self.encode(values, scale, zero_point), scale, zero_point)

    def neighbours(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Return (the level at or below steps, the gap to the next), in units of the scale.

        Integers go on without end; beyond the ends of a table there is the last level and no gap.
        """
        if self.levels is not None:
            return neighbours(steps, self.levels.table(steps))
        return torch.floor(steps), torch.ones_like(steps)

    def admitted(self, scale: Tensor) -> Tensor:
        """Return the nearest scale that the grid's format has, with a straight-through gradient."""
        return scale if self.levels is None else self.levels.admitted(scale)


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight as integers: codes [out, in, *kernel] int16, scale and zero_point [groups, 1]."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    grid: Grid

    def dequantize(self) -> Tensor:
        """Return what the codes stand for in the dtype of scale, [out, in, *kernel]."""
        rows = self.grid.granularity.group(self.codes).to(self.scale.dtype)
        return self.grid.decode(rows, self.scale, self.zero_point).reshape(self.codes.shape)

    def on(self, device: torch.device) -> QuantizedTensor:
        """Return the same on device."""
        codes, scale, zero_point = (
            values.detach().to(device) for values in (self.codes, self.scale, self.zero_point)
        )
        return replace(self, codes=codes, scale=scale, zero_point=zero_point)

    def check(self) -> None:
        """Check that these are integers of the grid.

        Raises:
            ValueError: says what is not; "... gave" goes before it.
        """
        rows, grid = self.grid.granularity.group(self.codes), self.grid
        if self.codes.dtype != torch.int16:
            raise ValueError(f"codes of {self.codes.dtype}; they are int16")
        for name in ("scale", "zero_point"):
            found = getattr(self, name)
            if found.shape != (len(rows), 1):
                raise ValueError(f"a {name} {list(found.shape)}; it is [{len(rows)}, 1]")
            if not found.isfinite().all():
                raise ValueError(f"a {name} that is not finite")
        if ((self.codes < grid.qmin) | (self.codes > grid.qmax)).any():
            low, high = int(self.codes.min()), int(self.codes.max())
            raise ValueError(f"codes from {low} to {high}; the grid has {grid.qmin} to {grid.qmax}")
        if (self.zero_point != self.zero_point.round()).any():
            raise ValueError("a zero point that is no whole number")
        if (self.scale != grid.admitted(self.scale)).any():
            raise ValueError(
                "a scale that the grid's format does not have; give self.grid.admitted(scale)"
            )
