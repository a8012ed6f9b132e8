"""What a method costs, counted by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch

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
