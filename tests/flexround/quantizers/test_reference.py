"""Each method's forward against its reference, the equation in torch's operations and autograd."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from benchmarks.plain import Plain
from flexround.attach import attach
from flexround.grid import Grid, PerChannel
from flexround.kernels import chunking
from flexround.quantizers import lrq
from flexround.ranges import LpSearch
from flexround.reconstruction.unit import reconstruction_loss
from flexround.structure import Layer
from tests.flexround.quantizers.methods import (
    LAYERS,
    METHODS,
    SIGNED,
    all_bits,
    granularities,
    grid_of,
    layers,
    shaken,
    symmetries,
    weight_of,
)

RANGES = LpSearch(2.4, 80, 0.01)


def full_matrix_lrq(weight, *, grid, ranges):
    """Return LRQ with a full matrix, which its rule gives to weights of thousands alone."""
    with mock.patch.object(lrq, "rank_of", return_value=None):
        quantizer = METHODS["lrq"](weight, grid=grid, ranges=ranges)
    assert quantizer.u2 is None
    return quantizer


ALL = METHODS | {"lrq_full": full_matrix_lrq}
LEARNED = [name for name in ALL if name != "rtn"]
# Methods that pass a gradient on to the weight itself, which no run asks for.
TO_THE_WEIGHT = {"rtn", "adaquant", "adaquant_flexround", "lwc", *SIGNED}
# Every method on every layer that it is for.
pairs = pytest.mark.parametrize(
    ("name", "layer"),
    [(n, la) for n in ALL for la in LAYERS if not n.startswith("lrq") or la == "linear"],
)


def passes(quantize, quantizer, progress=0.7):
    """Return the value and all gradients of a weighted sum, the regularizer included."""
    quantizer.zero_grad()
    out = quantize()
    generator = torch.Generator().manual_seed(2)
    upstream = torch.randn(out.shape, generator=generator, dtype=out.dtype)
    ((out * upstream).sum() + quantizer.regularizer(progress)).backward()
    grads = {n: p.grad.clone() for n, p in quantizer.named_parameters() if p.grad is not None}
    return out.detach(), grads


@pytest.fixture
def small_chunks(monkeypatch):
    """Many pieces, also of the small weights of the tests."""
    monkeypatch.setattr(chunking, "CHUNK", 16)


def case(name, layer, granularity, symmetric, bits, dtype):
    """Return a weight and a quantizer of it that is where training might be."""
    weight = weight_of(LAYERS[layer], dtype=dtype).weight.detach()
    quantizer = ALL[name](weight, grid=grid_of(bits, symmetric, granularity), ranges=RANGES)
    shaken(quantizer, 0.2)
    if name in SIGNED:
        quantizer.after_step()
    return weight, quantizer


@pairs
@granularities
@symmetries
@all_bits
@pytest.mark.usefixtures("small_chunks")
def test_values_and_gradients(name, layer, granularity, symmetric, bits):
    weight, quantizer = case(name, layer, granularity, symmetric, bits, torch.float64)
    own_weight, plain_weight = (weight.clone().requires_grad_() for _ in range(2))
    ours, own = passes(lambda: quantizer(own_weight), quantizer)
    theirs, plain = passes(lambda: quantizer.reference(plain_weight), quantizer)
    torch.testing.assert_close(ours, theirs)
    learned = {n for n, p in quantizer.named_parameters() if p.requires_grad}
    assert own.keys() == plain.keys() == learned
    for key in own:
        torch.testing.assert_close(own[key], plain[key], msg=lambda m, k=key: f"{k}: {m}")
    assert (own_weight.grad is not None) == (name in TO_THE_WEIGHT)
    if own_weight.grad is not None:
        torch.testing.assert_close(own_weight.grad, plain_weight.grad)


@layers
@granularities
@symmetries
@all_bits
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_adaround_soft_and_hard(make, granularity, symmetric, bits, hard, dtype):
    weight = weight_of(make, dtype=dtype).weight.detach()
    grid = grid_of(bits, symmetric, granularity)
    quantizer = shaken(METHODS["adaround"](weight, grid=grid, ranges=RANGES), 1.0)
    soft = quantizer.reference(weight)
    if hard:
        quantizer.harden()
        assert torch.equal(quantizer(weight), quantizer.reference(weight))
        assert not torch.allclose(quantizer(weight), soft)
    else:
        torch.testing.assert_close(quantizer(weight), soft)


@layers
@granularities
@symmetries
@all_bits
def test_rtn_is_its_equation_to_the_last_bit(make, granularity, symmetric, bits):
    weight = weight_of(make).weight.detach()
    grid = grid_of(bits, symmetric, granularity)
    quantizer = METHODS["rtn"](weight, grid=grid, ranges=RANGES)
    assert torch.equal(quantizer(weight), quantizer.reference(weight))


def trained(name, plain):
    """Return what 100 iterations leave of a block's weights."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10)).double()
    x = torch.randn(64, 24, dtype=torch.float64)
    target = block(x).detach()
    unit = [Layer(str(i), block[i]) for i in (0, 2)]
    grid = Grid(3, False, PerChannel())
    if plain:
        quantizers = []
        for layer in unit:
            made = ALL[name](layer.module.weight, grid=grid, ranges=RANGES)
            parametrize.register_parametrization(layer.module, "weight", Plain(made))
            quantizers.append(made)
    else:
        quantizers = attach(unit, ALL[name], grid, RANGES)
    groups = [group for q in quantizers for group in q.param_groups(1e-3)]
    sgd = name in SIGNED
    own = quantizers[0].optimizer(groups)
    optimizer = torch.optim.Adam(groups) if plain and not sgd else own
    generator = torch.Generator().manual_seed(1)
    for iteration in range(100):
        batch = torch.randperm(64, generator=generator)[:16]
        optimizer.zero_grad()
        loss = reconstruction_loss(block(x[batch]), target[batch], 1)
        loss = loss + sum(q.regularizer(iteration / 100) for q in quantizers)
        loss.backward()
        optimizer.step()
        for q in quantizers:
            q.after_step()
    return {
        f"{i}.{n}": p.detach() for i, q in enumerate(quantizers) for n, p in q.named_parameters()
    }


@pytest.mark.parametrize("name", LEARNED)
def test_the_same_after_100_iterations(name):
    ours, plain = trained(name, plain=False), trained(name, plain=True)
    assert ours.keys() == plain.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], plain[key], msg=lambda m, k=key: f"{k}: {m}")
