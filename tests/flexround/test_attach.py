"""What a method bakes into a layer is what its integers stand for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from flexround.attach import attach, freeze, made_for
from flexround.grid import Grid, PerChannel, PerGroup, QuantizedTensor
from flexround.levels import levels_named
from flexround.quantizers.base import WeightQuantizer
from flexround.quantizers.rtn import RTN
from flexround.ranges import MinMax
from flexround.structure import Layer

GRID = Grid(4, symmetric=False, granularity=PerChannel())


class Soft(RTN):
    """Moves a weight half of the way to the grid, and never all of it."""

    def forward(self, weight: Tensor) -> Tensor:  # noqa: D102
        return (weight + super().forward(weight)) / 2


class Random(RTN):
    """Rounds anew at every call."""

    def forward(self, weight: Tensor) -> Tensor:  # noqa: D102
        return super().forward(weight + torch.rand_like(weight) * self.scale)


class Wide(RTN):
    """Has a scale for every input in place of every output."""

    def dequantization_scale(self) -> Tensor:  # noqa: D102
        return self.scale.T


class Fractional(RTN):
    """Has zero points between two codes."""

    def dequantization_zero_point(self) -> Tensor:  # noqa: D102
        return self.zero_point + 0.25


class Doubling(RTN):
    """Learns a step size that is no power of two."""

    def dequantization_scale(self) -> Tensor:  # noqa: D102
        return self.scale * 1.3


def _frozen(method: type[WeightQuantizer], grid: Grid = GRID) -> QuantizedTensor:
    torch.manual_seed(0)
    layers = [Layer("fc", nn.Linear(32, 32))]
    attach(layers, method, grid, MinMax())
    return freeze(layers)["fc"]


@pytest.mark.parametrize(
    ("method", "line"),
    [
        (Soft, "layer fc: Soft gave a weight that is not on its grid"),
        (Random, "layer fc: Random gave a weight that is not on its grid"),
        (Wide, r"layer fc: Wide gave a scale \[1, 32\]; it is \[32, 1\]"),
        (Fractional, "layer fc: Fractional gave a zero point that is no whole number"),
    ],
)
def test_what_is_not_on_the_grid_is_refused(method: type[WeightQuantizer], line: str) -> None:
    """A weight that no integer stands for would be a number of full precision in the table."""
    with pytest.raises(ValueError, match=line):
        _frozen(method)


def test_a_scale_that_the_format_lacks_is_refused() -> None:
    """MXFP4 has powers of two, and a file would hold another scale than the network."""
    grid = Grid(4, symmetric=True, granularity=PerGroup(32), levels=levels_named("mxfp4"))
    _frozen(RTN, grid)
    with pytest.raises(ValueError, match="a scale that the grid's format does not have"):
        _frozen(Doubling, grid)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"codes": torch.full((2, 4), 16, dtype=torch.int16)}, "codes from 16 to 16; .* 0 to 15"),
        ({"codes": torch.zeros(2, 4)}, "codes of torch.float32; they are int16"),
        ({"scale": torch.tensor([[1.0], [torch.nan]])}, "a scale that is not finite"),
    ],
)
def test_integers_of_no_grid_are_told(change: dict[str, Tensor], line: str) -> None:
    """What a solver of one's own may give."""
    zeros = torch.zeros(2, 4, dtype=torch.int16)
    found = QuantizedTensor(zeros, torch.ones(2, 1), torch.zeros(2, 1), GRID)
    found.check()
    with pytest.raises(ValueError, match=line):
        replace(found, **change).check()


def test_a_constructor_that_asks_for_a_number_is_one_line() -> None:
    """Options are checked on weights without storage."""

    class Branching(RTN):
        def __init__(self, weight: Tensor, **options: object) -> None:
            super().__init__(weight, **options)
            self.largest = weight.abs().max().item()

    with pytest.raises(ValueError, match="constructor fails on a weight without storage"):
        made_for((4, 4), GRID, partial(Branching))
