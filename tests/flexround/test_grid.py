"""Grids and granularities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexround.grid import Grid, PerChannel, PerGroup, PerTensor
from flexround.kernels.chunking import row_chunks


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_grid_has_two_to_the_bits_codes_and_holds_zero(bits, symmetric):
    grid = Grid(bits, symmetric, PerTensor())
    assert grid.qmax - grid.qmin + 1 == 2**bits
    assert grid.qmin <= 0 <= grid.qmax


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits={bits}: give a whole number from 2 to 8"):
        Grid(bits, True, PerTensor())


def test_groups_are_consecutive_weights_of_one_output_channel():
    weight = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert torch.equal(PerTensor().group(weight), weight.reshape(1, 24))
    assert torch.equal(PerChannel().group(weight), weight.reshape(2, 12))
    assert torch.equal(PerGroup(4).group(weight), weight.reshape(6, 4))


@pytest.mark.parametrize("group_size", [5, 7, 24])
def test_a_group_size_that_does_not_divide_is_refused(group_size):
    with pytest.raises(ValueError, match=f"group_size={group_size} does not divide the 12 weights"):
        PerGroup(group_size).group(torch.zeros(2, 3, 2, 2))


def test_a_group_size_below_one_is_refused():
    with pytest.raises(ValueError, match="group_size=0"):
        PerGroup(0)


@given(rows=st.integers(1, 3000), elements=st.integers(1, 300_000))
def test_chunks_cover_every_row_once(rows, elements):
    covered = [row for part in row_chunks(rows, elements) for row in range(part.start, part.stop)]
    assert covered == list(range(rows))
