"""Tables of levels, for grids whose points are not the integers: NF4, FP4 (E2M1) and MXFP4.

A table is all that a rounding asks of a grid: the level nearest to a value, the two that it lies
between, and the gap between those. Values are in units of the scale.

Sources: QLoRA (arXiv 2305.14314, app. E) for NF4; the OCP Microscaling Formats specification v1.0
(sec. 5.3.3 and 6.3) for E2M1 and MXFP4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

# A group of weights that are all zero has this for its largest: a scale of 0 would give NaN.
SMALLEST = 1e-8


def straight_through(values: Tensor, passing: Tensor) -> Tensor:
    """Return values to the last bit, with the gradient of passing instead of their own."""
    return values.detach() + (passing - passing.detach())


class Table(NamedTuple):
    """A table as tensors: levels [n] and the cuts [n + 1] between what rounds to them.

    The first and the last cut are half a gap beyond the ends, as far as an integer grid's last code
    is rounded to without a clamp. Ties go to the even code, as those of the integers do.
    """

    levels: Tensor
    cuts: Tensor


@dataclass(frozen=True)
class Levels:
    """The levels of a grid in units of its scale, ascending, 0 among them; codes count from it.

    A subclass names the format.

    Attributes:
        name: what the command line calls it.
        values: the levels.
        bits: of a code.
        block: how many weights share a scale where the format says so.
        powers: whether scales are powers of two, a byte each (E8M0).
    """

    name: ClassVar[str]
    values: ClassVar[tuple[float, ...]]
    bits: ClassVar[int] = 4
    block: ClassVar[int | None] = None
    powers: ClassVar[bool] = False

    @property
    def lowest(self) -> int:
        """The code of the lowest level: 0 has the code 0."""
        return -self.values.index(0.0)

    @property
    def largest(self) -> float:
        """The largest level by size."""
        return max(-self.values[0], self.values[-1])

    def cover(self, size: Tensor) -> Tensor:
        """Return the scale [groups, 1] on which weights of at most size are covered."""
        return size.clamp(min=SMALLEST) / self.largest

    def admitted(self, scale: Tensor) -> Tensor:
        """Return the nearest scale that the format has, with a straight-through gradient."""
        return scale

    def candidates(self, widest: Tensor, shares: list[float]) -> list[Tensor]:
        """Return the scales that a search tries from widest, that of `cover`, on."""
        return [widest * share for share in shares]

    def table(self, like: Tensor) -> Table:
        """Return the levels as tensors of the type of like, where it lies."""
        return _table(self, like.dtype, like.device)


class NF4(Levels):
    """Quantiles of a normal distribution, 7 below 0 and 8 above, over the largest."""

    name = "nf4"
    values = (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    )  # fmt: skip


class FP4(Levels):
    """Floating point of 1 sign, 2 exponent and 1 mantissa bits; its two zeros are one level."""

    name = "fp4"
    values = (-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class MXFP4(FP4):
    """FP4 in blocks of 32 whose scale is a power of two, 2^(floor(log2 max|w|) - 2)."""

    name = "mxfp4"
    block = 32
    powers = True

    def cover(self, size: Tensor) -> Tensor:
        """Return the specification's scale; what is beyond 6 of it is clamped, up to 8."""
        size = size.clamp(min=SMALLEST)
        mantissa = torch.frexp(size.detach()).mantissa  # in [1/2, 1)
        exact = size.detach() / mantissa / 8
        return straight_through(exact, size * (exact / size.detach()))

    def admitted(self, scale: Tensor) -> Tensor:
        """Return the nearest power of two, by its exponent."""
        held = scale.detach()
        mantissa = torch.frexp(held).mantissa
        exact = held / mantissa * torch.where(mantissa < 0.5**0.5, 0.5, 1.0)
        return straight_through(exact, scale * (exact / held))

    def candidates(self, widest: Tensor, shares: list[float]) -> list[Tensor]:
        """Return the powers of two from one above widest, where nothing is clamped, downwards."""
        least = min(shares)
        found = [widest * 2.0, widest]
        while 0.5 ** (len(found) - 1) >= least:
            found.append(widest * 0.5 ** (len(found) - 1))
        return found if len(shares) > 1 else [widest]


BY_NAME: dict[str, type[Levels]] = {kind.name: kind for kind in (NF4, FP4, MXFP4)}


def levels_named(name: object) -> Levels | None:
    """Return the levels of that name, None for integers, which have none.

    Raises:
        ValueError: when there are none of that name.
    """
    if name is None:
        return None
    if not isinstance(name, str) or name not in BY_NAME:
        raise ValueError(f"levels {str(name)[:40]!r}; there are {', '.join(BY_NAME)}")
    return BY_NAME[name]()


@lru_cache(maxsize=64)
def _table(levels: Levels, dtype: torch.dtype, device: torch.device) -> Table:
    values = torch.tensor(levels.values, dtype=dtype, device=device)
    gaps = values.diff()
    middles = values[:-1] + gaps / 2
    codes = torch.arange(len(gaps), device=device) + levels.lowest
    # A value on a cut goes below it. Where the code below is odd, a tie is to go above.
    down = torch.nextafter(middles, values.new_full((), -torch.inf))
    middles = torch.where(codes % 2 == 0, middles, down)
    ends = values[:1] - gaps[:1] / 2, values[-1:] + gaps[-1:] / 2
    return Table(values, torch.cat([ends[0], middles, ends[1]]))


def nearest_places(values: Tensor, table: Table) -> Tensor:
    """Return the place in the table of the level nearest to each of values, int64.

    -1 and n stand for what lies more than half a gap beyond the ends.
    """
    return torch.bucketize(values.contiguous(), table.cuts) - 1


def neighbours(values: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """Return (the level at or below each of values, the gap to the one above).

    Beyond the ends it is the last level, and no gap.
    """
    levels = table.levels
    padded = torch.cat([levels[:1], levels, levels[-1:]])
    above = torch.bucketize(values.contiguous(), levels, right=True)
    lower = padded[above]
    return lower, padded[above + 1] - lower


def gaps(values: Tensor, table: Table) -> Tensor:
    """Return the gap that each of values lies in; beyond the ends the last one goes on."""
    cell = torch.bucketize(values.contiguous(), table.levels[1:-1], right=True)
    return table.levels.diff()[cell]
