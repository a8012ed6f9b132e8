"""SignRound: what its signed steps can reach, its gradient, its best iteration."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flexround.api.rules import _signround_lr
from flexround.attach import attach, freeze
from flexround.grid import Grid, PerChannel
from flexround.quantizers.signround import SignRound, SignSGD
from flexround.ranges import LpSearch, MinMax
from flexround.reconstruction.optimize import BestParameters, UnitOptimizer, scheduled
from flexround.structure import Layer
from tests.flexround.quantizers.methods import (
    activations,
    granularities,
    shaken,
    symmetries,
    weight_of,
)


@granularities
@symmetries
def test_gradients_are_those_of_both_rounds_passed_through(granularity, symmetric):
    weight = weight_of(lambda: nn.Linear(24, 12), dtype=torch.float64).weight.detach()
    grid = Grid(2, symmetric, granularity)
    quantizer = shaken(SignRound(weight, grid=grid, ranges=MinMax()).double(), 0.2)
    upstream = torch.randn(weight.shape, dtype=torch.float64)
    (quantizer(weight) * upstream).sum().backward()

    # The same with every rounding replaced by its value plus what passes through.
    def through(x):
        return x + (x.round() - x).detach()

    v, alpha, beta = (
        p.detach().clone().requires_grad_() for p in (quantizer.v, quantizer.alpha, quantizer.beta)
    )
    rows = granularity.group(weight)
    low = alpha * rows.amin(dim=1, keepdim=True).clamp(max=0)
    high = beta * rows.amax(dim=1, keepdim=True).clamp(min=0)
    if symmetric:  # 2 bits: the codes are -2 .. 1
        scale, zero = torch.where(-low > high, -low, -high) / 2, torch.zeros_like(beta)
    else:
        scale = (high - low) / 3
        zero = through(-low / scale)
    steps = through(granularity.group(weight) / scale + v) + zero
    bounds = (torch.tensor(float(grid.qmin)), torch.tensor(float(grid.qmax)))
    codes = torch.where(
        steps < bounds[0], bounds[0], torch.where(steps > bounds[1], bounds[1], steps)
    )
    out = ((codes - zero) * scale).reshape(weight.shape)
    torch.testing.assert_close(quantizer(weight), out)
    (out * upstream).sum().backward()
    for own, wanted in ((quantizer.v, v), (quantizer.alpha, alpha), (quantizer.beta, beta)):
        torch.testing.assert_close(own.grad, wanted.grad)


def test_the_ends_of_a_range_are_not_rounded():
    weight = torch.tensor([[-0.3, 0.2, 1.0]])
    quantizer = SignRound(weight, grid=Grid(2, False, PerChannel()), ranges=MinMax())
    assert quantizer.dequantization_scale().item() == pytest.approx(1.3 / 3)
    assert quantizer.dequantization_zero_point().item() == 1  # 0.3 / 0.433
    # Half of the low end. Of one that had been rounded to the grid, -0.433, it would be
    # z = round(0.217 / 0.406) = 1.
    quantizer.alpha.data.fill_(0.5)
    assert quantizer.dequantization_scale().item() == pytest.approx(1.15 / 3)
    assert quantizer.dequantization_zero_point().item() == 0  # 0.15 / 0.383


@pytest.mark.parametrize(
    ("row", "scale", "codes"),
    [
        ([-1.0, 0.5, 0.0], 0.5, [-2, 1, 0]),
        ([1.0, -0.5, 0.0], -0.5, [-2, 1, 0]),  # the larger side is the positive one
        ([0.25, 0.5, 0.0], -0.25, [-1, -2, 0]),
        ([0.0, 0.0, 0.0], None, [0, 0, 0]),
    ],
)
def test_a_symmetric_grid_has_the_larger_side_at_its_lowest_code(row, scale, codes):
    weight = torch.tensor([row])
    grid = Grid(2, True, PerChannel())
    quantizer = SignRound(weight, grid=grid, ranges=MinMax())
    found = quantizer.finalize(weight)
    assert found.codes.tolist() == [codes]
    assert torch.equal(found.dequantize(), weight)
    assert not found.zero_point.any()
    if scale is not None:
        assert found.scale.item() == scale
        # beta shrinks the positive side: below the negative one, the sign turns.
        quantizer.beta.data.fill_(0.4)
        low, high = max(0.0, -min(row)), 0.4 * max(row)
        turned = low / 2 if low > high else -high / 2
        assert quantizer.dequantization_scale().item() == pytest.approx(turned)


@symmetries
def test_searched_ranges_are_where_the_ends_start(symmetric):
    weight = weight_of(lambda: nn.Linear(24, 12)).weight.detach()
    grid = Grid(3, symmetric, PerChannel())
    search = LpSearch(2.4, 80, 0.01)
    share = search(weight, grid)[0] / MinMax()(weight, grid)[0]
    assert share.min() < 1
    quantizer = SignRound(weight, grid=grid, ranges=search)
    torch.testing.assert_close(quantizer.low, share * weight.amin(1, keepdim=True))
    torch.testing.assert_close(quantizer.high, share * weight.amax(1, keepdim=True))


@pytest.mark.parametrize(
    ("iters", "bits", "rate", "reach"),
    [
        (200, 4, 1 / 200, 0.5025),
        (200, 2, 1 / 200, 0.5025),
        (1000, 4, 1 / 1000, 0.5005),
        (1000, 3, 2 / 1000, 1.001),
        (100, 4, 1 / 100, 0.505),
        (50, 4, 1 / 50, 0.51),
    ],
)
def test_v_stays_within_the_sum_of_the_rates(iters, bits, rate, reach):
    assert _signround_lr(iters, bits) == pytest.approx(rate)
    assert rate * (iters + 1) / 2 == pytest.approx(reach)
    param = nn.Parameter(torch.zeros(3))
    optimizer, schedule = scheduled(SignSGD([{"params": [param], "lr": rate}]), "linear", iters)
    for _ in range(iters):
        param.grad = torch.tensor([1e-9, -5.0, 0.0])  # the size of a gradient has no part
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(param.detach(), torch.tensor([-reach, reach, 0.0]))


def test_training_reduces_the_error_and_keeps_the_best_iteration():
    layer = weight_of(lambda: nn.Linear(64, 32))
    inputs = activations(256, 64)
    target = layer(inputs).detach()
    (quantizer,) = attach([Layer("it", layer)], SignRound, Grid(3, False, PerChannel()), MinMax())
    seen = []

    def losses(batch, _):
        error = (layer(inputs[batch]) - target[batch]).square().sum(1).mean()
        seen.append((error.item(), quantizer.v.detach().clone()))
        return error, error

    groups = quantizer.param_groups(5e-3)
    optimizer = scheduled(quantizer.optimizer(groups), "linear", 200)
    best = BestParameters([p for group in groups for p in group["params"]])
    descent = UnitOptimizer("it", "recon.lr", 200, 256, torch.Generator().manual_seed(0), ())
    descent.run(256, losses, [optimizer], quantizer.after_step, best)
    error, v = min(seen, key=lambda pair: pair[0])
    assert torch.equal(quantizer.v, v)
    for factor in (quantizer.alpha, quantizer.beta):
        assert 0 <= factor.min() <= factor.max() <= 1
    assert error < 0.8 * seen[0][0]
    freeze([Layer("it", layer)])
    final = (layer(inputs) - target).square().sum(1).mean().item()
    assert final == pytest.approx(error, rel=1e-4)
