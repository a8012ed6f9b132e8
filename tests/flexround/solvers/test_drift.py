"""GPTAQ and Qronos against least squares, column by column, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from flexround.grid import Grid, PerChannel, PerGroup
from flexround.ranges import MinMax
from flexround.solvers.gptaq import GPTAQ
from flexround.solvers.gptq import GPTQ
from flexround.solvers.hessian import Drift, Hessians, objective
from flexround.solvers.qronos import Qronos
from flexround.structure import Layer
from tests.flexround.quantizers.methods import activations

GPTQ_ = GPTQ(128, 0.01, False, False, False, "ranges")
GPTAQ_ = GPTAQ(128, 0.01, False, False, False, "ranges", 1.0)
QRONOS = Qronos(128, 1e-6, False, False, False, "ranges")
SOLVERS = {"gptaq": GPTAQ_, "qronos": QRONOS}
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
GRID = Grid(3, False, PerChannel())
dead_inputs = pytest.mark.parametrize("dead", [(), (0,), (5,), (11,), (0, 7, 8)], ids=str)


def case(features=12, out=7, samples=200, strength=0.3, dead=()):
    """Return (weight [out, in], inputs x and x_fp [samples, in]) in float64; dead are 0 in x."""
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(out, features, generator=draws, dtype=torch.float64)
    inputs = activations(samples, features).double()
    noise = torch.randn(samples, features, generator=draws, dtype=torch.float64)
    mixed = torch.randn(features, features, generator=draws, dtype=torch.float64) / features**0.5
    exact = inputs + strength * (inputs @ mixed + 0.3 * noise)
    inputs[:, list(dead)] = 0
    return weight, inputs, exact


def without(weight, dead):
    """Return weight with 0 for the inputs dead, as its scales are chosen and it is rounded."""
    clean = weight.clone()
    clean[:, list(dead)] = 0
    return clean


def sums(inputs, exact):
    drift, scale = exact - inputs, 2 / len(inputs)
    return (
        scale * (inputs.T @ inputs)[None],
        Drift(scale * (drift.T @ inputs)[None], scale * (drift.T @ drift)[None]),
    )


def solved(solver, weight, inputs, exact, grid=GRID):
    return solver.quantize_on_drift(weight, *sums(inputs, exact), grid, MinMax())


def nearest(values, scale, zero, grid=GRID):
    return (grid.encode(values[:, None], scale, zero) - zero)[:, 0] * scale[:, 0]


def fitted(target, inputs):
    """Return the least squares V [out, in] of V X^T = target, [out, samples]."""
    return torch.linalg.lstsq(inputs, target.T).solution.T


@dead_inputs
def test_qronos_is_a_least_squares_fit_after_every_column(dead):
    """The paper's own iteration, which its Cholesky form is proven equal to (theorem 3.1)."""
    weight, inputs, exact = case(dead=dead)
    scale, zero = MinMax()(without(weight, dead), GRID)
    target, rest, found = weight @ exact.T, weight.clone(), torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        behind = inputs[:, j + 1 :]
        left = target - found[:, :j] @ inputs[:, :j].T - rest[:, j + 1 :] @ behind.T
        if j not in dead:  # any value of it is as good, and 0 is what is kept
            best = left @ inputs[:, j] / inputs[:, j].square().sum()
            found[:, j] = nearest(best, scale, zero)
        if j + 1 < weight.shape[1]:
            rest[:, j + 1 :] = fitted(target - found[:, : j + 1] @ inputs[:, : j + 1].T, behind)
    own = solved(replace(QRONOS, damp=1e-14), weight, inputs, exact)
    torch.testing.assert_close(own.dequantize(), found)


@dead_inputs
def test_gptaq_moves_the_columns_behind_by_least_squares(dead):
    """Min |V X_behind - (w_j - w_hat_j) x_j - w_j d_j|^2 after every column (section 3.2).

    All columns are behind one that is dead.
    """
    weight, inputs, exact = case(dead=dead)
    drift, rest, found = exact - inputs, without(weight, dead), torch.zeros_like(weight)
    scale, zero = MinMax()(rest, GRID)
    for j in dead:
        rest += fitted(torch.outer(weight[:, j], drift[:, j]), inputs)
    for j in range(weight.shape[1]):
        column = rest[:, j].clone()
        found[:, j] = nearest(column, scale, zero)
        if j + 1 < weight.shape[1]:
            left = torch.outer(column - found[:, j], inputs[:, j])
            left += torch.outer(column, drift[:, j])
            rest[:, j + 1 :] += fitted(left, inputs[:, j + 1 :])
    own = solved(replace(GPTAQ_, damp=1e-14), weight, inputs, exact)
    torch.testing.assert_close(own.dequantize(), found)


@solvers
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(8)], ids=["channel", "group"])
def test_the_codes_do_not_depend_on_the_block_size(solver, granularity, act_order):
    weight, inputs, exact = case(32, 9)
    grid = Grid(3, False, granularity)
    solver = replace(solver, act_order=act_order, static_groups=act_order)
    codes = [
        solved(replace(solver, block_size=size), weight, inputs, exact, grid).codes
        for size in (1, 7, 24, 64)
    ]
    assert all(torch.equal(codes[0], other) for other in codes[1:])


@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(8)], ids=["channel", "group"])
def test_without_drift_gptaq_is_gptq(granularity):
    weight, inputs, _ = case(32, 9)
    grid = Grid(3, False, granularity)
    hessian, _ = sums(inputs, inputs)
    own = solved(GPTAQ_, weight, inputs, inputs, grid)
    theirs = GPTQ_.quantize(weight, hessian, grid, MinMax())
    assert torch.equal(own.codes, theirs.codes)
    assert torch.equal(own.scale, theirs.scale)


def test_without_drift_qronos_is_gptq_of_its_damping():
    weight, inputs, _ = case(32, 9)
    hessian, _ = sums(inputs, inputs)
    largest = torch.linalg.eigvalsh(hessian[0])[-1] / hessian[0].diagonal().mean()
    theirs = replace(GPTQ_, damp=1e-6 * largest.item()).quantize(weight, hessian, GRID, MinMax())
    assert torch.equal(solved(QRONOS, weight, inputs, inputs).codes, theirs.codes)


@solvers
@pytest.mark.parametrize("bits", [3, 4])
def test_the_output_is_nearer_to_the_full_precision_networks_than_gptqs(solver, bits):
    weight, inputs, exact = case(48, 24, 600)
    grid = Grid(bits, False, PerChannel())
    hessian, drift = sums(inputs, exact)
    theirs = GPTQ_.quantize(weight, hessian, grid, MinMax()).dequantize()
    own = solved(solver, weight, inputs, exact, grid).dequantize()
    errors = [objective(weight, found, hessian, drift).sum() for found in (own, theirs)]
    assert errors[0] < 0.8 * errors[1]


@solvers
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup(8)], ids=["channel", "group"])
@pytest.mark.parametrize("dead", [0, 5, 15])
def test_a_relu_that_only_the_quantized_network_never_passes_is_made_up_for(
    solver, act_order, granularity, dead
):
    """As far as least squares of the other inputs can, whose error is what no code goes below."""
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 16, generator=draws, dtype=torch.float64)
    mixed = torch.randn(16, 16, generator=draws, dtype=torch.float64) / 4
    before = torch.randn(400, 16, generator=draws, dtype=torch.float64) @ (mixed + torch.eye(16))
    noise = torch.randn(400, 16, generator=draws, dtype=torch.float64)
    exact, inputs = before.relu(), (before + 0.1 * noise).relu()
    inputs[:, dead] = 0
    grid = Grid(4, False, granularity)
    solver = replace(solver, act_order=act_order, static_groups=act_order)
    own = solved(solver, weight, inputs, exact, grid).dequantize()
    theirs = GPTQ_.quantize(weight, sums(inputs, exact)[0], grid, MinMax()).dequantize()
    target = weight @ exact.T
    best = fitted(target, inputs)
    errors = [(target - found @ inputs.T).square().sum() for found in (own, theirs, best)]
    assert (own[:, dead] == 0).all()
    assert errors[0] < 0.75 * errors[1]
    assert errors[0] < 1.5 * errors[2]


@pytest.mark.parametrize("kind", ["linear", "grouped convolution"])
def test_the_objective_is_the_error_against_the_full_precision_output(kind):
    torch.manual_seed(0)
    if kind == "linear":
        module, shape = nn.Linear(6, 5), (3, 11, 6)
    else:
        module, shape = nn.Conv2d(6, 4, 3, padding=1, groups=2), (3, 6, 5, 5)
    inputs, exact = torch.randn(shape), torch.randn(shape)
    layer = Layer("it", module)
    hessians = Hessians([layer])
    with torch.no_grad():
        with hessians.collecting(exact={("it", 0): exact}):
            module(inputs)
        target = module(exact).double()
        weight = module.weight.clone()
        changed = weight + 0.1 * torch.randn_like(weight)
        module.weight.copy_(changed)
        error = (module(inputs).double() - target).square()
    mean = error.movedim(2 if kind == "linear" else 1, 0).flatten(1).mean(1)
    own = objective(
        weight.flatten(1), changed.flatten(1), hessians.of(layer), hessians.drift(layer)
    )
    torch.testing.assert_close(own, mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.5])
def test_a_share_is_a_share(alpha):
    with pytest.raises(ValueError, match=f"quant.alpha={alpha}: give a share above 0, at most 1"):
        replace(GPTAQ_, alpha=alpha)
