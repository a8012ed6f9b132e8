"""What a method costs, counted by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flexround.cost import flop_counter
from flexround.grid import Grid, PerChannel
from flexround.models.vision import VisionAdapter
from flexround.quantizers.lrq import LRQ
from flexround.ranges import MinMax
from flexround.reconstruction.reconstruction import Reconstruction
from tests.flexround.quantizers.methods import METHODS

OUT, INTO, SAMPLES, ITERS = 20, 30, 8, 3
SETTING = Reconstruction(
    unit="layer", iters=ITERS, lr=1e-3, batch_size=SAMPLES, schedule="constant", inputs="quant",
    act_steps="start", act_lr=1e-3, act_iters=0, act_inputs="quant",
    quant_prob=1.0, keep_best=False, precision="float32", compile=False,
)  # fmt: skip


class Keep:
    """Keeps the reports."""

    def __init__(self):
        self.reports = []

    def begin(self, units, iters):
        """Nothing."""

    def step(self, unit, iteration, error):
        """Nothing."""

    def end_block(self, report):
        """Keep the report."""
        self.reports.append(report)


def cost(method, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(INTO, OUT), torch.nn.ReLU())
    adapter = VisionAdapter(model, torch.randn(2, INTO), None, torch.device("cpu"))
    keep = Keep()
    Reconstruction(**{**SETTING.__dict__, **options})(
        adapter, [torch.randn(SAMPLES, INTO)], quantizer=method,
        grid=Grid(4, False, PerChannel()), ranges=MinMax(),
        generator=torch.Generator().manual_seed(0), callbacks=[keep],
    )  # fmt: skip
    (report,) = keep.reports
    return report.cost


@pytest.mark.parametrize(
    ("name", "parameters", "bytes_each"),
    [  # Adam holds two numbers a parameter beside the parameter and its gradient, and a step count.
        ("flexround", OUT * INTO + 2 * OUT, 16),  # S2, s3, s1
        ("adaround", OUT * INTO, 16),
        ("lrq", 3 * (OUT + INTO) + 2 * OUT + INTO, 16),  # L2, U2, r2, s1, c2
        ("signround", OUT * INTO + 2 * OUT, 8),  # V, alpha, beta: signed descent has no state
        ("rtn", 0, 0),
    ],
)
def test_a_methods_parameters_and_bytes(name, parameters, bytes_each):
    found = cost(METHODS[name])
    assert found.parameters == parameters
    steps = 4 * 5 if bytes_each == 16 else 0  # one float each of at most five tensors
    assert parameters * bytes_each <= found.state_bytes <= parameters * bytes_each + steps


def test_a_kept_copy_counts():
    plain, kept = cost(METHODS["signround"]), cost(METHODS["signround"], keep_best=True)
    assert kept.state_bytes - plain.state_bytes == 4 * plain.parameters


def test_the_arithmetic_is_that_of_the_layer():
    """Forward and the weight's gradient, two flops for a multiplication with its addition."""
    layer = 2 * 2 * OUT * INTO * SAMPLES
    assert cost(METHODS["flexround"]).flops == ITERS * layer
    rank = 2 * OUT * INTO * 3  # L2 U2, and the gradients of both
    lrq = partial(LRQ, rank=3, rank_rule="fixed", seed=0)
    assert cost(lrq).flops == ITERS * (layer + 3 * rank)


def operations(run, *leaves):
    """Return (forward, backward) operations of run; leaves are what slopes are taken of."""
    with flop_counter() as forward:
        out = run()
    with flop_counter() as backward:
        torch.autograd.grad(out.sum(), leaves)
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("groups", [1, 4, 8], ids=["all channels", "grouped", "depthwise"])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d])
def test_a_convolution_multiplies_each_input_by_the_weights_that_it_meets(kind, groups):
    """2 x multiply-adds: out positions x kernel x in / groups x out; twice that backward."""
    samples, into, out, kernel, side = 3, 8, 16, 3, 7
    dims = 1 if kind is nn.Conv1d else 2
    layer = kind(into, out, kernel, groups=groups)
    x = torch.randn(samples, into, *[side] * dims, requires_grad=True)
    # A transposed convolution spreads every input, the other gathers for every output.
    positions = (side if kind is nn.ConvTranspose2d else side - kernel + 1) ** dims
    one = 2 * samples * positions * kernel**dims * into * out // groups
    assert operations(lambda: layer(x), x, layer.weight) == (one, 2 * one)
    assert operations(lambda: layer(x), layer.weight) == (one, one)
    assert operations(lambda: layer(x), x) == (one, one)


@pytest.mark.parametrize("heads", [4, 2], ids=["each its own keys", "keys shared by two heads"])
@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_attention_is_counted_whichever_kernel_computes_it(backend, heads):
    """Q K' and P V forward, the slopes of P, V, Q and K backward; each one product of that size."""
    samples, own, tokens, size = 2, 4, 6, 8
    query = torch.randn(samples, own, tokens, size, requires_grad=True)
    key, value = (torch.randn(samples, heads, tokens, size, requires_grad=True) for _ in range(2))
    attention = partial(nn.functional.scaled_dot_product_attention, enable_gqa=heads < own)
    one = 2 * samples * own * tokens**2 * size
    with sdpa_kernel(backend):
        found = operations(lambda: attention(query, key, value), query, key, value)
    assert found == (2 * one, 4 * one)


def test_kernels_of_a_gpu_are_counted_like_that_of_the_cpu():
    """On the meta device, whose tensors take the operators' own way without a card."""
    aten, shape = torch.ops.aten, (2, 4, 6, 8)
    q = torch.empty(shape, device="meta")
    one = 2 * 2 * 4 * 6**2 * 8
    for run in (
        lambda: aten._scaled_dot_product_flash_attention(q, q, q),
        lambda: aten._scaled_dot_product_efficient_attention(q, q, q, None, True),
        lambda: aten._scaled_dot_product_cudnn_attention(q, q, q, None, True),
    ):
        with flop_counter() as counter:
            run()
        assert counter.get_total_flops() == 2 * one


def test_an_iteration_of_a_depthwise_block_is_three_times_its_forward_pass():
    """MobileNetV2's features.12, where torch's own count is ten times as much."""
    inside, between, side = 12, 72, 5
    block = nn.Sequential(
        nn.Conv2d(inside, between, 1, bias=False), nn.ReLU6(),
        nn.Conv2d(between, between, 3, padding=1, groups=between, bias=False), nn.ReLU6(),
        nn.Conv2d(between, inside, 1, bias=False),
    )  # fmt: skip
    x = torch.randn(2, inside, side, side, requires_grad=True)
    weights = inside * between + 9 * between + between * inside
    forward = 2 * 2 * side**2 * weights
    assert operations(lambda: block(x), x, *block.parameters()) == (forward, 2 * forward)
