"""SignRound: what its signed steps can reach, its gradient, its best iteration."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiment.resolvers import _signround_lr
from flexround.attach import attach, freeze
from flexround.grid import Grid, PerChannel
from flexround.quantizers.signround import SignRound, SignSGD
from flexround.ranges import MinMax
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
        None if p is None else p.detach().clone().requires_grad_()
        for p in (quantizer.v, quantizer.alpha, quantizer.beta)
    )
    if symmetric:
        scale, zero = quantizer.scale * beta, torch.zeros_like(beta)
    else:
        below = quantizer.zero_point / 3
        scale = quantizer.scale * ((1 - below) * beta + below * alpha)
        zero = through(quantizer.zero_point * quantizer.scale * alpha / scale)
    steps = through(granularity.group(weight) / scale + v) + zero
    bounds = (torch.tensor(float(grid.qmin)), torch.tensor(float(grid.qmax)))
    codes = torch.where(
        steps < bounds[0], bounds[0], torch.where(steps > bounds[1], bounds[1], steps)
    )
    out = ((codes - zero) * scale).reshape(weight.shape)
    torch.testing.assert_close(quantizer(weight), out)
    (out * upstream).sum().backward()
    for own, wanted in ((quantizer.v, v), (quantizer.alpha, alpha), (quantizer.beta, beta)):
        if own is not None:
            torch.testing.assert_close(own.grad, wanted.grad)


@pytest.mark.parametrize(
    ("iters", "bits", "reach"), [(200, 4, 0.5025), (1000, 3, 1.001), (50, 4, 0.1275)]
)
def test_v_stays_within_the_sum_of_the_rates(iters, bits, reach):
    rate = _signround_lr(iters, bits)
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
    descent = UnitOptimizer("it", 200, 256, torch.Generator().manual_seed(0), ())
    descent.run(256, losses, [optimizer], quantizer.after_step, best)
    error, v = min(seen, key=lambda pair: pair[0])
    assert torch.equal(quantizer.v, v)
    for factor in (quantizer.alpha, quantizer.beta):
        assert 0 <= factor.min() <= factor.max() <= 1
    assert error < 0.8 * seen[0][0]
    freeze([Layer("it", layer)])
    final = (layer(inputs) - target).square().sum(1).mean().item()
    assert final == pytest.approx(error, rel=1e-4)
