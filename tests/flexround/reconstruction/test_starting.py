"""Learning that starts in GPTQ's codes: GPTQ's to the last one, and near to the weights."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from flexround.cost import Cost
from flexround.grid import Grid, PerChannel, PerGroup, PerTensor, QuantizedTensor
from flexround.importance import ImportanceSearch
from flexround.models.language_adapter import LanguageAdapter
from flexround.quantizers.rtn import RTN
from flexround.ranges import LpSearch, MinMax
from flexround.reconstruction.layerwise import Solve
from flexround.reconstruction.starting import REACH, SOLVER, RangesOf, inside_of_cells
from flexround.solvers.hessian import Hessians
from results.records.store import Store
from tests.conftest import TINY
from tests.flexround.models.test_language import CPU, EXAMPLE, halves, network, tokens
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_reconstruction import SETTING, adapter, calibration
from tests.flexround.test_cost import Keep

GRIDS = {
    "groups": Grid(3, False, PerGroup(8)), "row": Grid(2, True, PerChannel()),
    "tensor": Grid(4, False, PerTensor()),
}  # fmt: skip
STILL = 1e-12  # a rate at which nothing is learned
# Methods whose first scale is that of the ranges.
AT_THE_NEAREST = {name: METHODS[name] for name in ("flexround", "adaround", "lrq")} | {
    "adaquant": partial(METHODS["adaquant"], lr_v=STILL, lr_range=STILL),
    "adaquant_flexround": partial(METHODS["adaquant_flexround"], lr_v=STILL),
}


def of_words(loop, quantizer, grid, ranges=MinMax()):  # noqa: B008
    """Return the integers of a small LLaMA, and the reports."""
    keep = Keep()
    integers = loop(
        LanguageAdapter(network("llama"), EXAMPLE, CPU), halves(tokens("right")),
        quantizer=quantizer, grid=grid, ranges=ranges,
        generator=torch.Generator().manual_seed(0), callbacks=[keep],
    )  # fmt: skip
    return integers, keep.reports


def setting(**changes):
    return replace(SETTING, **{"iters": 1, "lr": STILL, "batch_size": 2, "start": "gptq"} | changes)


@pytest.mark.parametrize(
    ("method", "name"),
    [*((method, "groups") for method in AT_THE_NEAREST), ("flexround", "row"), ("lrq", "tensor")],
)
def test_a_method_starts_in_gptqs_codes(method, name):
    grid = GRIDS[name]
    found, _ = of_words(setting(), AT_THE_NEAREST[method], grid)
    expected, _ = of_words(Solve(batch_size=2, sequential=False), SOLVER, grid)
    assert found.keys() == expected.keys()
    for layer, integers in expected.items():
        assert torch.equal(found[layer].codes, integers.codes), layer


@pytest.mark.parametrize("method", ["signround", "lwc", "flexround_lwc"])
def test_scales_of_a_methods_own_are_gptqs_too(method):
    """Of SignRound's symmetric range, and of LWC's clipping, GPTQ's first layer is on its scale."""
    grid, target = GRIDS["row"], LanguageAdapter(network("llama"), EXAMPLE, CPU)
    layer, batch = target.blocks()[0].layers[0], halves(tokens("right"))
    weight = layer.module.weight.detach().clone()
    own = partial(METHODS[method], **{"lr_ends": STILL} if method == "flexround_lwc" else {})
    scale = own(weight, grid=grid, ranges=MinMax()).dequantization_scale().detach()
    assert not torch.equal(scale, MinMax()(weight, grid)[0])
    hessians = Hessians([layer])
    for part in batch:
        with hessians.collecting(part["attention_mask"].bool()):
            target.forward(part)
    given = RangesOf(MinMax(), weight, (scale, 0 * scale))
    expected = SOLVER.quantize(weight, hessians.of(layer), grid, given)
    found, _ = of_words(setting(), own, grid)
    assert torch.equal(found[layer.name].codes, expected.codes)


def test_negative_scales_and_images_start_there_too():
    grid, ranges = GRIDS["row"], ImportanceSearch()
    found, _ = of_words(setting(), METHODS["flexround"], grid, ranges)
    assert any((integers.scale < 0).any() for integers in found.values())
    nearest, _ = of_words(setting(start="nearest"), METHODS["flexround"], grid, ranges)
    assert any(not torch.equal(found[n].codes, nearest[n].codes) for n in found)
    images = {}
    grid, ranges = Grid(3, True, PerChannel()), LpSearch(2.4, 80, 0.01)
    for loop, method in (
        (setting(batch_size=8), METHODS["flexround"]), (Solve(8, sequential=False), SOLVER)
    ):  # fmt: skip
        images[loop] = loop(
            adapter(), calibration(), quantizer=method, grid=grid, ranges=ranges,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    found, expected = images.values()
    assert all(torch.equal(found[n].codes, expected[n].codes) for n in expected)


def test_weights_of_inputs_that_no_sample_excites_stay_at_the_nearest():
    """GPTQ makes them 0, and a method without a gradient there would never bring them back."""
    (images,) = calibration()
    images[:, 0] = 0
    grid, ranges = Grid(3, True, PerChannel()), MinMax()
    starts = {}
    for start in ("gptq", "nearest"):
        starts[start] = setting(batch_size=8, start=start)(
            adapter(), [images], quantizer=METHODS["flexround"], grid=grid, ranges=ranges,
            generator=torch.Generator().manual_seed(0),
        )["0"].codes  # fmt: skip
    dead, alive = starts["gptq"][:, 0], starts["gptq"][:, 1:]
    assert torch.equal(dead, starts["nearest"][:, 0])
    assert (dead != 0).any()
    assert not torch.equal(alive, starts["nearest"][:, 1:])


@pytest.mark.parametrize(
    ("method", "unit"),
    [("flexround", "block"), ("flexround", "layer"), ("lrq", "block"), ("signround", "block")],
)
def test_a_method_learns_from_there(method, unit):
    changes, grid = {"iters": 20, "lr": 5e-2, "unit": unit}, GRIDS["groups"]
    found, reports = of_words(setting(**changes), METHODS[method], grid)
    _, nearest = of_words(setting(**changes, start="nearest"), METHODS[method], grid)
    assert reports[0].error_before < nearest[0].error_before
    solved, of_gptq = of_words(Solve(batch_size=2, sequential=False), SOLVER, grid)
    first = reports[0].layers.keys()
    assert any(not torch.equal(found[name].codes, solved[name].codes) for name in first)
    extra = sum(r.cost.flops for r in reports) - sum(r.cost.flops for r in nearest)
    if unit == "block":  # whose layers share their Hessians
        assert extra == pytest.approx(sum(r.cost.flops for r in of_gptq))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4])
def test_a_weight_moves_no_further_than_to_round_to_its_code(bits, symmetric):
    draws = torch.Generator().manual_seed(0)
    grid = Grid(bits, symmetric, PerGroup(50))
    values = torch.randn(40, 50, generator=draws, dtype=torch.float64)
    scale, zero_point = MinMax()(values, grid)
    scale = scale * torch.where(torch.arange(40)[:, None] % 2 == 0, 1, -1) if symmetric else scale
    codes = torch.randint(grid.qmin, grid.qmax + 1, values.shape, generator=draws)
    found = inside_of_cells(values, QuantizedTensor(codes, scale, zero_point, grid))
    assert torch.equal(grid.encode(found, scale, zero_point).long(), codes)
    # Of all places in a cell, on a fine raster, none is nearer to the weight.
    raster = torch.linspace(-REACH, REACH, 201, dtype=torch.float64)
    places = (codes[..., None] + raster - zero_point[..., None]) * scale[..., None]
    nearest = (places - values[..., None]).abs().amin(-1)
    moved = (found - values).abs()
    assert (moved <= nearest + 1e-12).all()
    stays = grid.encode(values, scale, zero_point).long() == codes
    assert (moved[stays] <= (0.5 - REACH) * scale.abs().expand_as(values)[stays] + 1e-12).all()
    assert (found == values)[stays].any()


def test_costs_one_after_the_other_hold_the_larger_state():
    assert Cost(3, 40.0, 5.0).then(Cost(2, 7.0, 1.0)) == Cost(5, 40.0, 6.0)


def test_a_run_has_it_in_its_record(cli, results_dir):
    learned = ("quant=flexround", "bits=3", "num_samples=32", "recon.iters=3")
    outcome = cli(*TINY, *learned, "recon.start=gptq")
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    assert record.settings["recon"]["start"] == "gptq"
    assert "recon.start=gptq" in record.overrides


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["quant=rtn", "recon.start=gptq"], "recon.start=gptq does nothing"),
        (["quant=gptq", "recon.start=gptq"], "start"),
        (["recon.start=qronos"], "recon.start=qronos: Input should be 'nearest' or 'gptq'"),
        (["grid=nf4", "bits=4", "recon.start=gptq"], "recon.start=gptq is for integers"),
    ],
)
def test_where_it_does_nothing_it_is_refused(cli, args, said):
    outcome = cli("model=tiny_llama", *args)
    assert outcome.status != 0
    assert said in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_round_to_nearest_is_left_as_it_is():
    found, _ = of_words(replace(SETTING, batch_size=2), RTN, GRIDS["groups"])
    started, _ = of_words(setting(), RTN, GRIDS["groups"])
    assert all(torch.equal(found[name].codes, started[name].codes) for name in found)
