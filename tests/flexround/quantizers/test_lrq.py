"""LRQ: a linear layer's divisor of low rank."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from flexround.attach import attach, freeze
from flexround.grid import Grid, PerChannel, PerTensor
from flexround.quantizers.flexround import FlexRound
from flexround.quantizers.lrq import LRQ, rank_of
from flexround.ranges import MinMax
from flexround.reconstruction.optimize import scheduled
from flexround.structure import Layer
from flexround.utils.tensor_float32 import tensor_float32
from tests.flexround.quantizers.methods import METHODS, activations, shaken, symmetries, weight_of

RANK3 = METHODS["lrq"]


def linear(dtype=torch.float32):
    return weight_of(lambda: nn.Linear(24, 12), dtype=dtype).weight.detach()


def test_training_can_start():
    """L2 = 0 would have no gradient, and never move, without U2."""
    quantizer = RANK3(linear(), grid=Grid(4, True, PerTensor()), ranges=MinMax())
    assert quantizer.l2.abs().max() == 0 < quantizer.u2.abs().max()


@symmetries
def test_gradients_are_the_straight_through_ones(symmetric):
    weight = linear(torch.float64)
    grid = Grid(2, symmetric, PerChannel())
    quantizer = shaken(RANK3(weight, grid=grid, ranges=MinMax()).double(), 0.3)
    upstream = torch.randn(weight.shape, dtype=torch.float64)
    (quantizer(weight) * upstream).sum().backward()
    with torch.no_grad():
        log = quantizer.l2 @ quantizer.u2 + quantizer.r2 + quantizer.c2
        s1 = quantizer.scale * quantizer.log_s1.exp()
        u = weight / (s1 * log.exp())
        code = u.round() + quantizer.zero_point
        inside = (code >= grid.qmin) & (code <= grid.qmax)
        # d W_hat / d log = -W / exp(log) inside the range: by the weight's own size.
        by_log = -weight / log.exp() * inside * upstream
        level = code.clamp(grid.qmin, grid.qmax) - quantizer.zero_point
        by_s1 = ((level - u * inside) * s1 * upstream).sum(1, keepdim=True)
    torch.testing.assert_close(quantizer.l2.grad, by_log @ quantizer.u2.T)
    torch.testing.assert_close(quantizer.u2.grad, quantizer.l2.T @ by_log)
    torch.testing.assert_close(quantizer.r2.grad, by_log.sum(1, keepdim=True))
    torch.testing.assert_close(quantizer.c2.grad, by_log.sum(0, keepdim=True))
    torch.testing.assert_close(quantizer.log_s1.grad, by_s1)


def test_a_full_rank_divisor_expresses_what_flexrounds_does():
    """Any S2 [out, in] is L2 U2 of rank min(out, in), by its singular values."""
    weight, grid = linear(torch.float64), Grid(3, True, PerTensor())
    flexround = FlexRound(
        weight, grid=grid, ranges=MinMax(), learn_s1=True, use_s3=True, use_s4=False
    ).double()
    shaken(flexround, 0.5)
    left, values, right = torch.linalg.svd(flexround.log_s2.detach(), full_matrices=False)
    lrq = RANK3(weight, grid=grid, ranges=MinMax()).double()
    assert len(values) == 12, "full rank"
    lrq.l2, lrq.u2 = nn.Parameter(left * values), nn.Parameter(right)
    lrq.r2, lrq.log_s1 = flexround.log_s3, flexround.log_s1
    torch.testing.assert_close(lrq(weight), flexround(weight))
    lrq.l2.data[:, 3:] = 0
    assert not torch.allclose(lrq(weight), flexround(weight)), "rank 3 is not enough"


def test_its_divisor_is_a_product_in_float32_whatever_iterations_take():
    weight, seen = linear(), []
    q = RANK3(weight, grid=Grid(4, True, PerTensor()), ranges=MinMax())

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "mm" in str(func):
                seen.append(torch.backends.cuda.matmul.allow_tf32)
            return func(*args, **(kwargs or {}))

    with tensor_float32(True), torch.no_grad(), Products():
        q(weight)
    assert seen == [False]


def test_training_reduces_the_layers_error():
    layer = weight_of(lambda: nn.Linear(64, 32))
    inputs = activations(512, 64)
    target = layer(inputs).detach()
    method = partial(LRQ, rank=8, rank_rule="fixed", seed=0)
    (quantizer,) = attach([Layer("it", layer)], method, Grid(4, False, PerChannel()), MinMax())
    before = (layer(inputs) - target).square().sum().item()
    optimizer = quantizer.optimizer(quantizer.param_groups(2e-3))
    optimizer, schedule = scheduled(optimizer, "cosine", 300)
    for _ in range(300):
        optimizer.zero_grad()
        (layer(inputs) - target).square().sum(1).mean().backward()
        optimizer.step()
        schedule.step()
    freeze([Layer("it", layer)])
    assert (layer(inputs) - target).square().sum().item() < 0.6 * before


def test_the_same_seed_draws_the_same_u2():
    make = lambda seed: LRQ(  # noqa: E731
        linear(), grid=Grid(4, True, PerTensor()), ranges=MinMax(), rank=3, rank_rule="fixed",
        seed=seed,
    )  # fmt: skip
    assert torch.equal(make(1).u2, make(1).u2)
    assert not torch.equal(make(1).u2, make(2).u2)


@pytest.mark.parametrize(
    ("shape", "rank"),  # Llama-2's layers, as the authors' code treats them
    [((4096, 4096), 1024), ((11008, 4096), None), ((4096, 11008), None), ((5120, 13824), 1024),
     ((8192, 8192), None), ((1024, 8192), None), ((28672, 8192), 2048)],
)  # fmt: skip
def test_the_released_codes_ranks(shape, rank):
    assert rank_of(torch.Size(shape), 7, "code") == rank
    assert rank_of(torch.Size(shape), 7, "fixed") == 7


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [(torch.zeros(4, 3, 2, 2), {"rank": 1}, "LRQ is for linear layers"),
     (torch.zeros(24, 12), {"rank": 8}, r"rank 8 saves nothing .* give quant.rank below 8"),
     (torch.zeros(24, 12), {"rank": 0}, "quant.rank=0"),
     (torch.zeros(24, 12), {"rank": 2, "rank_rule": "paper"}, "quant.rank_rule=paper")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(weight, options, message):
    options = {"rank_rule": "fixed", "seed": 0} | options
    with pytest.raises(ValueError, match=message):
        LRQ(weight, grid=Grid(4, True, PerTensor()), ranges=MinMax(), **options)
