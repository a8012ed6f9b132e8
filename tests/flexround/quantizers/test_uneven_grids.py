"""Every learned rounding on tables of levels: its start, its gradients, what it may choose."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flexround.attach import attach, check_weights, freeze
from flexround.grid import Grid, PerChannel, PerGroup
from flexround.kernels import chunking
from flexround.levels import BY_NAME
from flexround.quantizers.rtn import RTN
from flexround.ranges import LpSearch, MinMax
from flexround.structure import Layer
from tests.flexround.quantizers.methods import (
    METHODS,
    SIGNED,
    activations,
    all_ranges,
    shaken,
    weight_of,
)
from tests.flexround.quantizers.test_reference import passes

GRIDS = {
    name: Grid(4, True, PerGroup(32) if kind.block else PerChannel(), kind())
    for name, kind in BY_NAME.items()
}
grids = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
methods = pytest.mark.parametrize("name", METHODS)
CLIPPED = ("lwc", "flexround_lwc")
SEARCH = LpSearch(2.4, 80, 0.01)


def linear(dtype=torch.float32):
    return weight_of(lambda: nn.Linear(64, 24), dtype=dtype)


@methods
@grids
@all_ranges
def test_training_starts_at_round_to_nearest(name, grid, ranges):
    weight = linear().weight.detach()
    quantizer = METHODS[name](weight, grid=grid, ranges=ranges)
    quantizer.harden()
    rows = grid.granularity.group(weight)
    nearest = grid.nearest(rows, quantizer.scale, quantizer.zero_point).view_as(weight)
    assert torch.equal(quantizer(weight), nearest)
    if name not in CLIPPED:
        rtn = RTN(weight, grid=grid, ranges=ranges)
        torch.testing.assert_close(quantizer(weight), rtn(weight))


@methods
@grids
@pytest.mark.parametrize("chunk", [16, 1 << 18])
def test_values_and_gradients(monkeypatch, name, grid, chunk):
    monkeypatch.setattr(chunking, "CHUNK", chunk)
    weight = linear(torch.float64).weight.detach()
    quantizer = shaken(METHODS[name](weight, grid=grid, ranges=SEARCH), 0.2)
    if name in SIGNED:
        quantizer.after_step()
    ours, own = passes(lambda: quantizer(weight.clone().requires_grad_()), quantizer)
    theirs, plain = passes(lambda: quantizer.reference(weight.clone().requires_grad_()), quantizer)
    torch.testing.assert_close(ours, theirs)
    assert own.keys() == plain.keys()
    for key in own:
        torch.testing.assert_close(own[key], plain[key], msg=lambda m, k=key: f"{k}: {m}")
    if name != "rtn":
        assert any(grad.abs().sum() > 0 for grad in own.values())


@methods
@grids
def test_freeze_is_bit_equal_and_on_the_grid(name, grid):
    layer = linear()
    unit = [Layer("it", layer)]
    assert check_weights(unit, grid, METHODS[name]) == (name != "rtn")
    (quantizer,) = attach(unit, METHODS[name], grid, MinMax())
    shaken(quantizer, 0.3)
    quantizer.after_step()
    quantizer.harden()
    forward = layer.weight.detach().clone()
    integers = freeze(unit)["it"]
    assert torch.equal(layer.weight, forward)
    assert torch.equal(layer.weight, integers.dequantize())
    levels = torch.tensor(grid.levels.values)
    rows = grid.granularity.group(integers.codes) - grid.qmin
    expected = levels[rows.long()] * integers.scale
    assert torch.equal(grid.granularity.group(forward), expected)
    if grid.levels.powers:
        assert (torch.frexp(integers.scale).mantissa == 0.5).all()


@grids
@pytest.mark.parametrize("name", ["adaround", *SIGNED])
def test_a_weight_goes_to_one_of_the_two_levels_that_it_lies_between(name, grid):
    weight = linear().weight.detach()
    quantizer = METHODS[name](weight, grid=grid, ranges=MinMax())
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        quantizer.v.uniform_(-0.5, 0.5, generator=draws)
    quantizer.harden()
    rows = grid.granularity.group(weight) / quantizer.scale
    found = grid.granularity.group(quantizer(weight)) / quantizer.scale
    levels = torch.tensor(grid.levels.values)
    below = torch.stack([levels[levels <= v].max() if v >= levels[0] else levels[0]
                         for v in rows.flatten()]).view_as(rows)  # fmt: skip
    # AdaRound takes a weight on a level to lie below the next one, as floor does on integers.
    above = torch.stack([levels[levels > v].min() if v < levels[-1] else levels[-1]
                         for v in rows.flatten()]).view_as(rows)  # fmt: skip
    either = (found - below).abs().lt(1e-5) | (found - above).abs().lt(1e-5)
    assert either.all()
    moved = found != grid.nearest(rows, torch.ones_like(quantizer.scale), quantizer.zero_point)
    assert moved.float().mean() > 0.1


RATES = {
    "adaround": 2e-2, "adaquant": None, "flexround": 1e-2, "lrq": 1e-2, "lwc": 1e-2,
    "adaquant_flexround": 1e-2, "flexround_lwc": 1e-2, "signround": 3e-3,
    "signround_v2": 3e-3,
}  # fmt: skip


@grids
@pytest.mark.parametrize("name", RATES)
def test_training_reduces_the_layers_error(name, grid):
    if name == "lwc" and grid.levels.powers:
        pytest.skip("a power of two seldom moves by what is learned of a range's ends")
    layer = weight_of(lambda: nn.Linear(32, 10))
    inputs = activations(512, 32)
    target = layer(inputs).detach()
    (quantizer,) = attach([Layer("it", layer)], METHODS[name], grid, MinMax())

    def error():
        return (layer(inputs) - target).pow(2).sum(1).mean()

    quantizer.hard = True
    before, seen = error().item(), []
    quantizer.hard = False
    optimizer = quantizer.optimizer(quantizer.param_groups(RATES[name]))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for step in range(300):
        own = error()
        seen.append(own.item())
        loss = own + quantizer.regularizer(step / 300)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        quantizer.after_step()
        schedule.step()
    freeze([Layer("it", layer)])
    after = min(seen) if name in SIGNED else error().item()  # they keep the best
    assert after < 0.95 * before


def test_a_layer_with_bits_of_its_own_is_on_integers():
    layer = Layer("head", nn.Linear(64, 8), bits=8)
    for grid in GRIDS.values():
        assert layer.grid(grid) == Grid(8, True, PerChannel())


def test_what_is_no_number_stays_none():
    weight = linear().weight.detach()
    quantizer = METHODS["flexround"](weight, grid=GRIDS["nf4"], ranges=MinMax())
    with torch.no_grad():
        quantizer.log_s2[0, 0] = float("nan")
    assert quantizer(weight)[0, 0].isnan()
    assert quantizer(weight).isnan().sum() == 1
