"""GPTQ and coordinate descent against their algebra, in float64 where it says so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from flexround.attach import Layer
from flexround.grid import Grid, PerChannel, PerGroup, PerTensor
from flexround.ranges import MinMax
from flexround.solvers.cdquant import CDQuant, best_values
from flexround.solvers.gptq import GPTQ, inverse_factor
from flexround.solvers.hessian import Hessians, objective
from flexround.solvers.solve import Solve
from results.store import Store
from tests.quantizers.methods import activations
from tests.test_reconstruction import adapter, calibration

PLAIN = GPTQ(128, 0.01, act_order=False, static_groups=False, stale_scales=False)
CYCLIC = CDQuant("gptq", "cyclic", 20, PLAIN)
GREEDY = CDQuant("gptq", "greedy", 1, PLAIN)
GRANULARITIES = {"tensor": PerTensor(), "channel": PerChannel(), "group": PerGroup(16)}
granularities = pytest.mark.parametrize("granularity", GRANULARITIES.values(), ids=GRANULARITIES)
symmetries = pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])


def case(features=64, out=24):
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(out, features, generator=draws, dtype=torch.float64)
    inputs = activations(512, features).double()
    return weight, (2 / 512) * (inputs.T @ inputs)[None]


def rtn(weight, grid):
    scale, zero = MinMax()(grid.granularity.group(weight), grid)
    codes = grid.encode(grid.granularity.group(weight), scale, zero)
    return ((codes - zero) * scale).view(weight.shape)


@granularities
@symmetries
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("solver", [PLAIN, CYCLIC, GREEDY], ids=["gptq", "cyclic", "greedy"])
def test_codes_are_in_range_and_the_objective_falls(solver, bits, symmetric, granularity):
    weight, hessian = case()
    grid = Grid(bits, symmetric, granularity)
    found = solver.quantize(weight, hessian, grid, MinMax())
    assert grid.qmin <= found.codes.min() <= found.codes.max() <= grid.qmax
    own = objective(weight, found.dequantize(), hessian).sum()
    gptq = objective(weight, PLAIN.quantize(weight, hessian, grid, MinMax()).dequantize(), hessian)
    assert gptq.sum() < objective(weight, rtn(weight, grid), hessian).sum()
    assert own <= gptq.sum() * (1 + 1e-12)


@granularities
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_does_not_depend_on_its_block_size(granularity, act_order):
    weight, hessian = case()
    grid = Grid(3, False, granularity)
    solver = replace(PLAIN, act_order=act_order, static_groups=act_order)
    codes = [
        replace(solver, block_size=size).quantize(weight, hessian, grid, MinMax()).codes
        for size in (1, 7, 24, 64)
    ]
    assert all(torch.equal(codes[0], other) for other in codes[1:])


def test_gptqs_errors_are_those_of_its_factor():
    """W - W_hat = E U, and tr(dW H_damped dW^T) = sum e^2 (8 bit)."""
    weight, hessian = case()
    integers = PLAIN.quantize(weight, hessian, Grid(8, False, PerChannel()), MinMax())
    found = integers.dequantize()
    factor = inverse_factor(hessian[0], 0.01)
    errors = (weight - found) @ torch.linalg.inv(factor)
    damped = hessian[0] + 0.01 * hessian[0].diagonal().mean() * torch.eye(64, dtype=torch.float64)
    change = found - weight
    torch.testing.assert_close((change @ damped * change).sum(), errors.square().sum())
    # e_j U_jj is what rounding column j as it then stood left over: half a step, but at a bound.
    inside = (integers.codes > 0) & (integers.codes < 255)
    assert inside.double().mean() > 0.9
    left = (errors * factor.diagonal()).abs() / integers.scale
    assert (left[inside] <= 0.500001).all()


@pytest.mark.parametrize("solver", [PLAIN, CYCLIC, GREEDY], ids=["gptq", "cyclic", "greedy"])
def test_without_correlation_nothing_beats_round_to_nearest(solver):
    weight, _ = case()
    diagonal = torch.diag(torch.rand(64, dtype=torch.float64) + 0.1)[None]
    grid = Grid(3, False, PerChannel())
    found = solver.quantize(weight, diagonal, grid, MinMax()).dequantize()
    torch.testing.assert_close(found, rtn(weight, grid))


def test_the_closed_form_level_is_the_best_of_all_levels():
    weight, hessian = case(16, 6)
    for bits in (2, 3, 4):
        grid = Grid(bits, False, PerChannel())
        scale, zero = MinMax()(weight, grid)
        levels = torch.arange(grid.qmax + 1, dtype=torch.float64)
        draws = torch.Generator().manual_seed(bits)
        codes = torch.randint(0, grid.qmax + 1, weight.shape, generator=draws)
        values = (codes - zero) * scale
        gradient, diagonal = (values - weight) @ hessian[0], hessian[0].diagonal()
        found = best_values(values, gradient, diagonal, scale, zero, grid)
        for column in range(16):
            trial = values.repeat(len(levels), 1, 1)  # [levels, out, in]
            trial[:, :, column] = (levels[:, None] - zero.T) * scale.T
            costs = ((trial - weight) @ hessian[0] * (trial - weight)).sum(2)
            best = trial[costs.argmin(dim=0), torch.arange(6), column]
            torch.testing.assert_close(found[:, column], best)


def test_no_single_move_improves_a_greedy_solution():
    weight, hessian = case(16, 6)
    grid = Grid(3, False, PerChannel())
    found = replace(GREEDY, sweeps=50).quantize(weight, hessian, grid, MinMax())
    values = found.dequantize().double()
    before = objective(weight, values, hessian)
    for row in range(6):
        for column in range(16):
            for level in range(8):
                trial = values.clone()
                trial[row, column] = (level - found.zero_point[row]) * found.scale[row]
                assert objective(weight, trial, hessian)[row] >= before[row] - 1e-9


def test_stale_scales_are_worse_where_groups_are_smaller_than_a_block():
    weight, hessian = case()
    grid = Grid(3, False, PerGroup(8))
    errors = {
        stale: objective(
            weight,
            replace(PLAIN, stale_scales=stale)
            .quantize(weight, hessian, grid, MinMax())
            .dequantize(),
            hessian,
        ).sum()
        for stale in (False, True)
    }
    assert errors[False] < errors[True]


def test_dead_inputs_neither_break_nor_inflate_the_scale():
    weight, hessian = case()
    hessian[:, 5], hessian[:, :, 5] = 0, 0
    weight[:, 5] = 1000
    grid = Grid(4, False, PerChannel())
    for solver in (PLAIN, CYCLIC):
        found = solver.quantize(weight, hessian, grid, MinMax())
        assert found.scale.max() < 2
        assert torch.isfinite(found.dequantize()).all()


def test_a_hessian_that_can_not_be_inverted_says_what_to_try():
    bad = -torch.eye(4, dtype=torch.float64)[None]
    with pytest.raises(ValueError, match=r"not positive definite .* raise quant.damp"):
        PLAIN.quantize(torch.ones(2, 4).double(), bad, Grid(4, False, PerChannel()), MinMax())


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(12, 5), nn.Conv2d(6, 4, 3, padding=1, stride=2), nn.Conv2d(6, 6, 3, groups=6),
     nn.Conv2d(8, 4, (1, 3), groups=2, dilation=2)],
)  # fmt: skip
def test_the_hessian_gives_the_error_of_the_layers_output(layer):
    torch.manual_seed(0)
    shape = (16, 7, 12) if isinstance(layer, nn.Linear) else (16, layer.in_channels, 9, 9)
    inputs = torch.randn(shape)
    hessians = Hessians([Layer("it", layer)])
    with hessians.collecting(), torch.no_grad():
        for part in inputs.split(5):
            layer(part)
    weight = layer.weight.detach().clone()
    changed = weight + 0.1 * torch.randn_like(weight)
    with torch.no_grad():
        before = layer(inputs)
        layer.weight.copy_(changed)
        error = (layer(inputs) - before).double().square()
    dim = 2 if isinstance(layer, nn.Linear) else 1
    mean = error.movedim(dim, 0).flatten(1).mean(1)
    own = objective(weight.flatten(1), changed.flatten(1), hessians.of(Layer("it", layer)))
    torch.testing.assert_close(own, mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("solver", [PLAIN, CYCLIC], ids=["gptq", "cdquant"])
def test_the_blocks_of_a_model_are_solved_better_than_they_are_rounded(solver):
    reports, target = [], adapter()

    class Watch:
        """Keeps the reports."""

        def begin(self, units, iters):
            """Nothing."""

        def end_block(self, report):
            """Keep the report."""
            reports.append(report)

    codes = Solve(8, sequential=True)(
        target, calibration(32), quantizer=solver, grid=Grid(3, True, PerChannel()),
        ranges=MinMax(), generator=torch.Generator(), observers=[Watch()],
    )  # fmt: skip
    # At the first layer's 8 bit there is next to nothing to gain.
    assert all(report.error_after < 1.01 * report.error_before for report in reports)
    assert all(report.error_after < 0.6 * report.error_before for report in reports[1:])
    for name, integers in codes.items():
        module = target.model.get_submodule(name)
        assert torch.equal(module.weight, integers.dequantize())


@pytest.mark.parametrize("quant", ["gptq", "cdquant"])
def test_a_run_ends_in_its_record(cli, results_dir, quant):
    options = ("num_samples=8", "task.seq_len=32", "protocol.window=32", "protocol.max_windows=8")
    outcome = cli("model=tiny_gpt2", f"quant={quant}", "bits=3", *options)
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    assert all(block["error_after"] < block["error_before"] for block in record.blocks)


@pytest.mark.parametrize(
    ("args", "message"),
    [(["quant=gptq", "quant.damp=0"], "quant.damp=0"),
     (["quant=gptq", "quant.act_order=true", "granularity=per_group", "group_size=16"],
      "give quant.static_groups=true"),
     (["quant=gptq", "recon.iters=9"], "Key 'iters' is not in struct; known keys: _target_"),
     (["quant=cdquant", "quant.mode=random"], "quant.mode=random: Input should be 'cyclic'"),
     (["quant=gptq", "activation=static_per_tensor"], "the solvers round weights alone")],
)  # fmt: skip
def test_bad_input_is_one_line(cli, args, message):
    outcome = cli("model=tiny_gpt2", *args)
    assert outcome.status == 1
    assert message in outcome.err.splitlines()[-1]
