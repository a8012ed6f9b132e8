"""Errors before and after a rotation: what must be the same, and a case by hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks.rotation import error, errors
from flexround.grid import Grid, PerGroup

GRID = Grid(3, False, PerGroup(4))


def drawn(seed=0):
    """Return weight [6, 8] and second moment [8, 8] of 32 vectors."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 8, generator=generator, dtype=torch.double)
    return torch.randn(6, 8, generator=generator, dtype=torch.double), x.T @ x


def test_without_gain_and_rotation_the_three_are_one():
    weight, moment = drawn()
    one, *others = errors(weight, torch.ones(8).double(), moment, torch.eye(8).double(), GRID)
    assert others == pytest.approx([one, one])
    assert one > 0


def test_a_gain_that_is_the_same_for_all_costs_nothing():
    weight, moment = drawn()
    plain, folded, _ = errors(
        weight, torch.full((8,), 3.0).double(), moment, torch.eye(8).double(), GRID
    )
    assert folded == pytest.approx(plain)


def test_weights_that_are_levels_lose_nothing():
    weight = torch.tensor([[0.0, 7, 3, 1, 14, 0, 2, 6]]).double()
    assert error(weight, torch.eye(8).double(), GRID) == pytest.approx(0, abs=1e-12)


def test_error_is_that_of_the_outputs():
    weight, _ = drawn()
    inputs = torch.randn(50, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    rows = GRID.granularity.group(weight)
    low, high = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
    step = (high - low) / 7
    zero = (-low / step).round()
    rounded = (((rows / step).round() + zero).clamp(0, 7) - zero) * step
    lost = (inputs @ (rounded.reshape(6, 8) - weight).T).square().sum()
    expected = (lost / (inputs @ weight.T).square().sum()).item()
    assert error(weight, inputs.T @ inputs, GRID) == pytest.approx(expected)
