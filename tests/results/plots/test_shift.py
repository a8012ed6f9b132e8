"""Shifts of codes from round-to-nearest."""

from __future__ import annotations

import pytest
import torch

from flexround.grid import PerTensor
from flexround.ranges import LpSearch
from results.plots.shift import grid_shift
from tests.flexround.quantizers.methods import (
    METHODS,
    granularities,
    grid_of,
    layers,
    shaken,
    symmetries,
    weight_of,
)

RANGES = LpSearch(2.4, 80, 0.01)


def shifts(method, make, granularity, symmetric, size):
    """Return the shifts of a layer's weight, the method's parameters shaken by size."""
    weight = weight_of(make).weight.detach()
    grid = grid_of(3, symmetric, granularity)
    quantizer = shaken(METHODS[method](weight, grid=grid, ranges=RANGES), size)
    quantizer.harden()
    found = grid_shift(weight, quantizer.finalize(weight))
    assert found.shape == weight.shape
    return found


@layers
@granularities
@symmetries
def test_round_to_nearest_has_none(make, granularity, symmetric):
    assert not shifts("rtn", make, granularity, symmetric, 0.0).any()


@layers
@granularities
@symmetries
def test_adaround_moves_a_weight_by_one_at_most(make, granularity, symmetric):
    moved = shifts("adaround", make, granularity, symmetric, 4.0)
    assert moved.any()
    assert moved.abs().max() == 1


@layers
def test_flexround_moves_a_weight_by_several(make):
    """At 8 bit a divisor of exp(-0.5) moves a large weight by tens of codes."""
    weight = weight_of(make).weight.detach()
    grid = grid_of(8, False, PerTensor())
    integers = shaken(METHODS["flexround"](weight, grid=grid, ranges=RANGES), 0.5).finalize(weight)
    assert grid_shift(weight, integers).abs().max() > 5


def test_a_transposed_weight_is_refused():
    weight = weight_of(lambda: torch.nn.Linear(24, 10)).weight.detach()
    grid = grid_of(4, True, PerTensor())
    integers = METHODS["rtn"](weight, grid=grid, ranges=RANGES).finalize(weight)
    with pytest.raises(ValueError, match=r"weight \[24, 10\] and codes \[10, 24\]"):
        grid_shift(weight.T, integers)
