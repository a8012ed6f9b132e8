"""SignRound against auto-round on the same weights, batches and rates: the same codes."""

from __future__ import annotations

import pytest
import torch

from flexround.grid import Grid, PerChannel, PerGroup
from flexround.quantizers.signround import SignRound
from flexround.ranges import MinMax
from flexround.reconstruction.optimize import BestParameters, scheduled
from flexround.reconstruction.unit import reconstruction_loss
from tests.flexround.quantizers.auto_round import CASES, RECORDED, batches, inputs, theirs


def ours(case):
    """Return the integers that SignRound finds on the same batches."""
    weight, x = inputs()
    granularity = PerChannel() if case.group == -1 else PerGroup(case.group)
    quantizer = SignRound(
        weight, grid=Grid(case.bits, case.symmetric, granularity), ranges=MinMax()
    )
    groups = quantizer.param_groups(case.lr)
    optimizer, schedule = scheduled(quantizer.optimizer(groups), "linear", case.iters)
    best = BestParameters([p for group in groups for p in group["params"]])
    target = x @ weight.T
    for batch in batches(case.iters):
        loss = reconstruction_loss(x[batch] @ quantizer(weight).T, target[batch], -1)
        best.see(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        quantizer.after_step()
    best.restore()
    quantizer.harden()
    return quantizer.finalize(weight)


def moved(weight, found):
    """Return the share of codes that are not round-to-nearest's on the first range."""
    start = SignRound(weight, grid=found.grid, ranges=MinMax()).finalize(weight)
    return (start.codes != found.codes).float().mean()


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_codes(name):
    found = ours(CASES[name])
    recorded = torch.tensor([int(digit, 16) for digit in RECORDED[name]]).view(found.codes.shape)
    assert moved(inputs()[0], found) > 0.1
    # All of them where it was recorded; sums in another order may turn the sign of a gradient.
    assert (found.codes - found.grid.qmin == recorded).float().mean() >= 0.999


@pytest.mark.parametrize("name", CASES)
def test_auto_round_where_it_is_installed(name):
    pytest.importorskip("auto_round")
    found, (codes, scale, zero_point) = ours(CASES[name]), theirs(CASES[name])
    assert (found.codes - found.grid.qmin == codes).float().mean() >= 0.999
    torch.testing.assert_close(found.scale.flatten(), scale)
    if zero_point is not None:
        assert (found.zero_point.flatten() == zero_point).float().mean() >= 0.999
