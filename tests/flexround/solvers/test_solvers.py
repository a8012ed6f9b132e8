"""GPTQ and coordinate descent against their algebra, in float64 where it says so."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import plain
from experiment.identity import identity
from flexround.grid import Grid, PerChannel, PerGroup, PerTensor
from flexround.ranges import MinMax
from flexround.reconstruction.layerwise import Solve
from flexround.solvers.cdquant import CDQuant
from flexround.solvers.coordinate_descent import Rows, best_values, move_one, move_pair, sweep
from flexround.solvers.gptq import GPTQ, inverse_factor
from flexround.solvers.hessian import Hessians, objective
from flexround.solvers.weight_clipping import SHARES, scales_of
from flexround.structure import Layer
from results.records.store import Store
from tests.experiment.test_configs import composed
from tests.flexround.quantizers.methods import activations
from tests.flexround.reconstruction.test_reconstruction import adapter, calibration

PLAIN = GPTQ(128, 0.01, False, False, False, "ranges")
CYCLIC = CDQuant("gptq", "cyclic", 20, 0, PLAIN)
GREEDY = CDQuant("gptq", "greedy", 1, 0, PLAIN)
PAIRS = CDQuant("gptq", "pairs", 1, 0, PLAIN)
DESCENTS = {"cyclic": CYCLIC, "greedy": GREEDY, "pairs": PAIRS}
SOLVERS = {"gptq": PLAIN, **DESCENTS}
GRANULARITIES = {"tensor": PerTensor(), "channel": PerChannel(), "group": PerGroup(16)}
granularities = pytest.mark.parametrize("granularity", GRANULARITIES.values(), ids=GRANULARITIES)
solvers = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
descents = pytest.mark.parametrize("solver", DESCENTS.values(), ids=DESCENTS)
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
@solvers
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


def test_both_solvers_are_their_papers_algorithms():
    weight, hessian = case(96, 20)
    grid = Grid(3, False, PerChannel())
    scale, zero = MinMax()(weight, grid)
    own = replace(PLAIN, block_size=32).quantize(weight, hessian, grid, MinMax()).dequantize()
    torch.testing.assert_close(own, plain.gptq(weight, hessian[0], scale, zero, 7, 32, 0.01))
    swept = CDQuant("rtn", "cyclic", 1, 0, PLAIN).quantize(weight, hessian, grid, MinMax())
    start = rtn(weight, grid)
    theirs = plain.cyclic_descent(weight, start, hessian[0], scale, zero, 7)
    torch.testing.assert_close(swept.dequantize(), theirs)
    assert not torch.allclose(start, theirs)


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


@solvers
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


def rows_of_a_case(bits=2, features=8, out=5):
    """Return rows in the middle of a search: codes at random."""
    weight, hessian = case(features, out)
    grid = Grid(bits, False, PerChannel())
    scale, zero = (t.expand_as(weight).contiguous() for t in MinMax()(weight, grid))
    draws = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, grid.qmax + 1, weight.shape, generator=draws)
    values = (codes - zero) * scale
    return Rows(weight, values, (values - weight) @ hessian[0], hessian[0], scale, zero, grid)


@pytest.mark.parametrize("bits", [2, 3])
def test_a_pairs_move_is_the_best_of_all_pairs_of_levels(bits):
    rows = rows_of_a_case(bits)
    order = torch.tensor([3, 0, 7, 5, 1, 4, 6, 2])
    best = torch.full((5,), torch.inf, dtype=torch.float64)
    for a, b in zip(order[:4].tolist(), order[4:].tolist(), strict=True):
        for first in range(rows.grid.qmax + 1):
            for second in range(rows.grid.qmax + 1):
                trial = rows.values.clone()
                for column, level in ((a, first), (b, second)):
                    trial[:, column] = (level - rows.zero[:, column]) * rows.scale[:, column]
                best = torch.minimum(best, objective(rows.exact, trial, rows.hessian[None]))
    assert move_pair(rows, order)
    torch.testing.assert_close(objective(rows.exact, rows.values, rows.hessian[None]), best)


@pytest.mark.parametrize("mode", DESCENTS)
def test_a_layer_of_one_input_is_rounded_to_its_nearest_levels(mode):
    weight = torch.randn(6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid, one = Grid(3, False, PerTensor()), torch.ones(1, 1, 1, dtype=torch.float64)
    found = DESCENTS[mode].quantize(weight, one, grid, MinMax(), lambda _: None)
    nearest = grid.nearest(weight.view(1, -1), *MinMax()(weight.view(1, -1), grid)).view(6, 1)
    torch.testing.assert_close(found.dequantize(), nearest)


@pytest.mark.parametrize("move", [sweep, move_one], ids=["sweep", "one"])
def test_the_gradient_is_kept_up_to_date(move):
    rows = rows_of_a_case(3, 40)
    before = rows.objective()
    for _ in range(40):
        if not move(rows):
            break
        assert rows.objective() < before
        before = rows.objective()
    again = (rows.values - rows.exact) @ rows.hessian
    torch.testing.assert_close(rows.gradient, again, rtol=0, atol=1e-11)


def test_pairs_go_on_where_single_moves_end():
    rows = rows_of_a_case(2, 32, 12)
    while move_one(rows):
        pass
    before, draws = rows.objective(), torch.Generator().manual_seed(0)
    moved = [move_pair(rows, torch.randperm(32, generator=draws)) for _ in range(20)]
    assert any(moved)
    assert rows.objective() < before
    torch.testing.assert_close(
        rows.gradient, (rows.values - rows.exact) @ rows.hessian, rtol=0, atol=1e-11
    )


@descents
def test_what_is_watched_falls_from_the_start_to_the_end(solver):
    weight, hessian = case()
    grid, seen = Grid(3, False, PerChannel()), []
    found = solver.quantize(weight, hessian, grid, MinMax(), seen.append)
    first = PLAIN.quantize(weight, hessian, grid, MinMax())
    ends = [objective(weight, q.dequantize(), hessian).sum().item() for q in (first, found)]
    assert seen[0] == pytest.approx(ends[0])
    assert seen[-1] == pytest.approx(ends[1])
    assert all(after < before for before, after in itertools.pairwise(seen))


@granularities
@symmetries
def test_clipped_scales_are_the_best_of_all_shares(granularity, symmetric):
    """Brute force over the shares, one scale at a time, the other weights exact."""
    weight, hessian = case(48, 4)
    grid = Grid(3, symmetric, granularity)
    scale, zero = scales_of(weight, hessian, grid, MinMax(), "owc")
    widest, _ = MinMax()(granularity.group(weight), grid)
    for index in range(len(scale)):
        costs = []
        for share in SHARES:
            rounded = granularity.group(weight).clone()
            codes = grid.encode(rounded, widest * share, zero)
            rounded[index] = ((codes - zero) * widest * share)[index]
            costs.append(objective(weight, rounded.view(weight.shape), hessian).sum().item())
        best = SHARES[costs.index(min(costs))]
        torch.testing.assert_close(scale[index], widest[index] * best)


@granularities
def test_clipping_lowers_the_error_of_rounding(granularity):
    weight, hessian = case()
    grid = Grid(2, False, granularity)
    errors = []
    for kind in ("ranges", "owc"):
        scale, zero = scales_of(weight, hessian, grid, MinMax(), kind)
        values = granularity.group(weight)
        rounded = ((grid.encode(values, scale, zero) - zero) * scale).view(weight.shape)
        errors.append(objective(weight, rounded, hessian).sum())
    assert errors[1] < errors[0]


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


@pytest.mark.parametrize("static_groups", [True, False])
def test_each_group_is_searched_once(static_groups):
    """The scales of a group of which the columns change are not searched before they do."""
    searched = []

    class Counting(MinMax):
        def __call__(self, values, grid):
            searched.append(values.numel())
            return super().__call__(values, grid)

    weight, hessian = case()
    solver = GPTQ(128, 0.01, False, static_groups, False, "ranges")
    solver.quantize(weight, hessian, Grid(3, False, PerGroup(16)), Counting())
    assert sum(searched) == weight.numel()


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
        ranges=MinMax(), generator=torch.Generator(), callbacks=[Watch()],
    )  # fmt: skip
    # At the first layer's 8 bit there is next to nothing to gain.
    assert all(report.error_after < 1.01 * report.error_before for report in reports)
    assert all(report.error_after < 0.6 * report.error_before for report in reports[1:])
    for report in reports:
        assert set(report.objectives) == set(report.layers)
        for rtn_error, *_, end in report.objectives.values():
            assert end < 1.01 * rtn_error
        assert report.error_after == pytest.approx(sum(o[-1] for o in report.objectives.values()))
        assert report.cost.flops > 0
        assert report.cost.state_bytes > 0
        assert report.cost.parameters == 0
    for name, integers in codes.items():
        module = target.model.get_submodule(name)
        assert torch.equal(module.weight, integers.dequantize())


@pytest.mark.parametrize("quant", ["gptq", "cdquant", "gptaq", "qronos"])
def test_a_run_ends_in_its_record(cli, results_dir, quant):
    options = ("num_samples=8", "task.seq_len=32", "protocol.window=32", "protocol.max_windows=8")
    outcome = cli("model=tiny_gpt2", f"quant={quant}", "bits=3", *options)
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    assert all(block["error_after"] < block["error_before"] for block in record.blocks)


def test_cdquant_starts_as_its_paper_does():
    cfg = composed("model=tiny_gpt2", "quant=cdquant")
    assert cfg.quant.start == "owc"
    settings = identity(cfg)["quant"]
    assert "gptq" not in settings  # what that start would do is nothing to this run
    assert "seed" not in settings
    other = composed("model=tiny_gpt2", "quant=cdquant", "quant.start=gptq")
    assert identity(other)["quant"]["gptq"]["scales"] == "ranges"


@pytest.mark.parametrize(
    "activation", [("static_per_tensor",), ("dynamic_per_token", "kv_bits=8")], ids=lambda a: a[0]
)
def test_activations_are_quantized_under_a_solver(cli, results_dir, activation):
    kind, *more = activation
    options = ("num_samples=8", "task.seq_len=32", "protocol.window=32", "protocol.max_windows=8")
    for args in (("activation=none",), (f"activation={kind}", "act_bits=3", *more)):
        outcome = cli("model=tiny_llama", "quant=gptq", "bits=8", *args, *options)
        assert outcome.status == 0, outcome.err
    plain, quantized = sorted(Store(results_dir).load(), key=lambda r: len(r.blocks[0]["layers"]))
    assert quantized.value > plain.value  # three bits do hurt
    sites = set(quantized.blocks[0]["layers"]) - set(plain.blocks[0]["layers"])
    assert len(sites) == (6 if more else 4)


@pytest.mark.parametrize(
    ("args", "message"),
    [(["quant=gptq", "quant.damp=0"], "quant.damp=0"),
     (["quant=gptq", "quant.act_order=true", "granularity=per_group", "group_size=16"],
      "give quant.static_groups=true"),
     (["quant=gptq", "recon.iters=9"], "methods that learn, and does nothing with a solver"),
     (["quant=gptq", "recon.iterations=9"], "known keys: batch_size, sequential"),
     (["quant=gptq", "quant.static_groups=true"],
      "quant.static_groups=true does nothing with the chosen granularity"),
     (["quant=gptq", "quant.stale_scales=true"], "quant.stale_scales=true does nothing"),
     (["quant=cdquant", "quant.start=gptq", "quant.gptq.stale_scales=true"], "does nothing with"),
     (["quant=cdquant", "quant.mode=random"], "quant.mode=random: Input should be 'cyclic'"),
     (["quant=cdquant", "quant.start=owq"], "quant.start=owq: Input should be 'rtn', 'owc'"),
     (["quant=cdquant", "quant.gptq.damp=0.1"],
      "quant.gptq.damp=0.1 does nothing with the chosen quant.start; leave it out, or choose "),
     (["quant=cdquant", "quant.seed=1"], "quant.seed=1 does nothing with the chosen quant.mode"),
     (["quant=gptq", "act_bits=4"], "act_bits=4 does nothing"),
     (["quant=gptaq", "quant.alpha=0"], "quant.alpha=0"),
     (["quant=qronos", "granularity=per_group", "group_size=16", "quant.static_groups=false"],
      "give quant.static_groups=true")],
)  # fmt: skip
def test_bad_input_is_one_line(cli, args, message):
    outcome = cli("model=tiny_gpt2", *args)
    assert outcome.status == 1
    assert message in outcome.err.splitlines()[-1]
