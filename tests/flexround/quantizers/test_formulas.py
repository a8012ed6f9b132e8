"""The library's own passes against each formula in torch's operations and autograd, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from benchmarks.formulas import FORMULAS, Plain
from flexround.attach import attach
from flexround.grid import Grid, PerChannel
from flexround.kernels import chunking
from flexround.ranges import LpSearch
from flexround.reconstruction.unit import reconstruction_loss
from flexround.structure import Layer
from tests.flexround.quantizers.methods import (
    LAYERS,
    METHODS,
    granularities,
    grid_of,
    shaken,
    symmetries,
    weight_of,
)

RANGES = LpSearch(2.4, 80, 0.01)
methods = pytest.mark.parametrize("name", FORMULAS)
# Every method on every layer that it is for.
pairs = pytest.mark.parametrize(
    ("name", "layer"),
    [(n, layer) for n in FORMULAS for layer in LAYERS if n != "lrq" or layer == "linear"],
)


def passes(quantize, quantizer, progress=0.7):
    """Return the value and all gradients of a weighted sum, the regularizer included."""
    quantizer.zero_grad()
    out = quantize()
    draws = torch.Generator().manual_seed(2)
    upstream = torch.randn(out.shape, generator=draws, dtype=out.dtype)
    ((out * upstream).sum() + quantizer.regularizer(progress)).backward()
    grads = {n: p.grad.clone() for n, p in quantizer.named_parameters() if p.grad is not None}
    return out.detach(), grads


@pytest.fixture
def small_chunks(monkeypatch):
    """Many pieces, also of the small weights of the tests."""
    monkeypatch.setattr(chunking, "CHUNK", 16)


@pairs
@granularities
@symmetries
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.usefixtures("small_chunks")
def test_values_and_gradients(name, layer, granularity, symmetric, bits):
    weight = weight_of(LAYERS[layer], dtype=torch.float64).weight.detach()
    quantizer = METHODS[name](weight, grid=grid_of(bits, symmetric, granularity), ranges=RANGES)
    shaken(quantizer, 0.2)
    if name == "signround":
        quantizer.after_step()
    ours, own = passes(lambda: quantizer(weight), quantizer)
    theirs, plain = passes(lambda: FORMULAS[name](quantizer, weight), quantizer)
    torch.testing.assert_close(ours, theirs)
    assert own.keys() == plain.keys() == dict(quantizer.named_parameters()).keys()
    for key in own:
        torch.testing.assert_close(own[key], plain[key], msg=lambda m, k=key: f"{k}: {m}")


def trained(name, plain):
    """Return what 100 iterations leave of a block's weights."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 10)).double()
    x = torch.randn(64, 24, dtype=torch.float64)
    target = block(x).detach()
    layers = [Layer(str(i), block[i]) for i in (0, 2)]
    grid = Grid(3, False, PerChannel())
    if plain:
        quantizers = []
        for layer in layers:
            made = METHODS[name](layer.module.weight, grid=grid, ranges=RANGES)
            parametrize.register_parametrization(
                layer.module, "weight", Plain(made, FORMULAS[name])
            )
            quantizers.append(made)
    else:
        quantizers = attach(layers, METHODS[name], grid, RANGES)
    groups = [group for q in quantizers for group in q.param_groups(1e-3)]
    sgd = name == "signround"
    own = quantizers[0].optimizer(groups)
    optimizer = torch.optim.Adam(groups) if plain and not sgd else own
    draws = torch.Generator().manual_seed(1)
    for iteration in range(100):
        batch = torch.randperm(64, generator=draws)[:16]
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


@methods
def test_the_same_after_100_iterations(name):
    ours, plain = trained(name, plain=False), trained(name, plain=True)
    assert ours.keys() == plain.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], plain[key], msg=lambda m, k=key: f"{k}: {m}")
