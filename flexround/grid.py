"""The quantization grid: the one place where real values and integer codes meet.

Sources: uniform affine quantization as in FlexRound (arXiv 2306.00317, sec. 3.1) and LSQ's gradient
for the step size (arXiv 1902.08153, eq. 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

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
