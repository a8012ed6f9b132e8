"""What must hold for every method on every layer type and grid."""

from __future__ import annotations

import math
import re
from pkgutil import resolve_name

import pytest
import torch
from torch import nn

from experiment import ROOT
from flexround.attach import attach, check_weights, freeze
from flexround.grid import Grid, PerTensor
from flexround.quantizers import base
from flexround.quantizers.rtn import RTN
from flexround.quantizers.signround import SignRoundV2
from flexround.ranges import LpSearch, MinMax
from flexround.structure import Layer
from tests.flexround.quantizers.methods import (
    METHODS,
    SIGNED,
    all_bits,
    all_ranges,
    granularities,
    grid_of,
    layers,
    methods_on_layers,
    shaken,
    symmetries,
    weight_of,
)


@methods_on_layers
@granularities
@symmetries
@all_bits
@all_ranges
def test_training_starts_at_round_to_nearest(method, make, granularity, symmetric, bits, ranges):
    weight = weight_of(make).weight.detach()
    grid = grid_of(bits, symmetric, granularity)
    quantizer = method(weight, grid=grid, ranges=ranges)
    quantizer.harden()
    rtn = RTN(weight, grid=grid, ranges=ranges)
    clipped = method in (METHODS["lwc"], METHODS["flexround_lwc"])
    if not clipped and method not in (*map(METHODS.get, SIGNED), METHODS["adaquant"]):
        assert torch.equal(quantizer(weight), rtn(weight))
        return
    # Their scale comes from the range's ends; SignRound's on symmetric codes has a sign.
    rows, scale, zero = granularity.group(weight), quantizer.scale, quantizer.zero_point
    nearest = (grid.encode(rows, scale, zero) - zero) * scale
    assert torch.equal(quantizer(weight), nearest.reshape(weight.shape))
    if clipped:
        share = 1 / (1 + math.exp(-4.0))  # of either end, so that the zero point stays
        first, middle = ranges(rows, grid)
        torch.testing.assert_close(scale, share * first)
        torch.testing.assert_close(zero, middle)
    elif not symmetric or method is METHODS["adaquant"]:
        torch.testing.assert_close(quantizer(weight), rtn(weight))


@layers
@granularities
@symmetries
@all_bits
def test_rtn_is_the_nearest_level(make, granularity, symmetric, bits):
    """No level of the grid is nearer to a weight than the one chosen, by brute force."""
    weight = weight_of(make).weight.detach()
    grid = grid_of(bits, symmetric, granularity)
    rtn = RTN(weight, grid=grid, ranges=MinMax())
    values = granularity.group(weight)
    levels = (torch.arange(grid.qmin, grid.qmax + 1) - rtn.zero_point) * rtn.scale  # [groups, L]
    nearest = (values[:, :, None] - levels[:, None]).abs().amin(dim=2)
    chosen = (values - granularity.group(rtn(weight))).abs()
    torch.testing.assert_close(chosen, nearest, rtol=0, atol=1e-6)


@methods_on_layers
@granularities
@symmetries
@all_bits
def test_codes_are_integral_in_range_and_few(method, make, granularity, symmetric, bits):
    weight = weight_of(make).weight.detach()
    grid = grid_of(bits, symmetric, granularity)
    quantizer = shaken(method(weight, grid=grid, ranges=MinMax()), 0.5)
    quantizer.harden()
    quantized = quantizer.finalize(weight)
    assert quantized.codes.dtype == torch.int16
    assert quantized.codes.shape == weight.shape
    assert quantized.codes.min() >= grid.qmin
    assert quantized.codes.max() <= grid.qmax
    for row in granularity.group(quantizer(weight)):
        assert len(row.unique()) <= 2**bits


@methods_on_layers
@granularities
@symmetries
def test_freeze_is_bit_equal_and_plain(method, make, granularity, symmetric):
    layer = weight_of(make)
    kind, names = type(layer), set(layer.state_dict())
    unit = [Layer("it", layer)]
    (quantizer,) = attach(unit, method, grid_of(3, symmetric, granularity), LpSearch(2.4, 80, 0.01))
    shaken(quantizer, 0.3)
    quantizer.harden()
    quantized_forward = layer.weight.detach().clone()
    integers = freeze(unit)["it"]
    assert type(layer) is kind
    assert set(layer.state_dict()) == names
    assert isinstance(layer.weight, nn.Parameter)
    assert torch.equal(layer.weight, quantized_forward)
    assert torch.equal(layer.weight, integers.dequantize())


LEARNING_RATES = {
    "adaround": 2e-2, "adaquant": None, "flexround": 1e-2, "adaquant_flexround": 1e-2
}  # fmt: skip


@pytest.mark.parametrize("name", LEARNING_RATES)
@granularities
def test_training_reduces_the_layers_error(name, granularity):
    torch.manual_seed(0)
    layer = weight_of(lambda: nn.Linear(24, 10))
    inputs = torch.randn(512, 24) @ torch.randn(24, 24)  # correlated, as activations are
    target = layer(inputs).detach()
    grid, ranges = grid_of(4, True, granularity), LpSearch(2.4, 80, 0.01)

    def error():
        return (layer(inputs) - target).pow(2).sum(1).mean()

    (quantizer,) = attach([Layer("it", layer)], METHODS[name], grid, ranges)
    quantizer.hard = True
    before = error().item()
    quantizer.hard = False
    optimizer = torch.optim.Adam(quantizer.param_groups(LEARNING_RATES[name]))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for step in range(400):
        loss = error() + quantizer.regularizer(step / 400)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        quantizer.after_step()
        schedule.step()
    freeze([Layer("it", layer)])
    assert error().item() < 0.95 * before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(value):
    layer = weight_of(lambda: nn.Linear(8, 4))
    layer.weight.data[0, 0] = value
    with pytest.raises(ValueError, match=r"layer head.3: .*not finite"):
        check_weights([Layer("head.3", layer)], Grid(4, True, PerTensor()), RTN)


def test_without_its_shift_adaquant_flexround_is_flexround():
    """Values and gradients, the two going different ways: a kernel of its own, and hooks."""
    weight = weight_of(lambda: nn.Conv2d(8, 6, 3), dtype=torch.float64).weight.detach()
    grid = Grid(3, False, PerTensor())
    upstream = torch.randn(weight.shape, dtype=torch.float64)
    both = [
        shaken(METHODS[name](weight, grid=grid, ranges=MinMax()).double(), 0.3)
        for name in ("flexround", "adaquant_flexround")
    ]
    both[1].v.data.zero_()
    for quantizer in both:
        (quantizer(weight) * upstream).sum().backward()
    torch.testing.assert_close(both[0](weight), both[1](weight))
    for name, parameter in both[0].named_parameters():
        torch.testing.assert_close(parameter.grad, both[1].get_parameter(name).grad)
    # d W_hat / d V = 1 / (S2 s3 s4) inside of the range, 0 outside.
    with torch.no_grad():
        divisor = (both[1].log_s2 + both[1].log_s3 + both[1].log_s4).exp()
        code = (weight / divisor / both[1].dequantization_scale()).round() + both[1].zero_point
        inside = (code >= grid.qmin) & (code <= grid.qmax)
    assert not inside.all()
    torch.testing.assert_close(both[1].v.grad, upstream * inside / divisor)


def test_every_quantizer_of_conf_is_held_to_these_tests():
    named = re.compile(r"^  _target_: (\S+)$", re.MULTILINE)
    texts = [path.read_text() for path in (ROOT / "conf" / "quant").glob("*.yaml")]
    targets = {resolve_name(name) for text in texts for name in named.findall(text)}
    quantizers = {target for target in targets if issubclass(target, base.WeightQuantizer)}
    assert quantizers
    assert quantizers == {getattr(method, "func", method) for method in METHODS.values()}


def test_the_bases_docstring_names_the_hooks_that_each_method_overrides():
    rows = dict(re.findall(r"^    (\w+) {2,}(.*)$", base.__doc__, re.MULTILINE))
    hooks = {n for n, f in vars(base.WeightQuantizer).items() if callable(f) and n[0] != "_"}
    hooks.remove("reference")
    classes = {getattr(method, "func", method) for method in METHODS.values()}
    classes.remove(SignRoundV2)  # SignRound with another bound, which is no hook
    assert not vars(SignRoundV2).keys() & (hooks | {"reference"})
    assert rows.keys() == {each.__name__ for each in classes}
    for each in classes:
        assert set(re.findall(r"\w+", rows[each.__name__])) & hooks == vars(each).keys() & hooks
        assert "reference" in vars(each) or each is RTN
