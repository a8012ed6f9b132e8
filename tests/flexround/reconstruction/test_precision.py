"""Precision of products: what torch's own switches for a GPU say while a run computes.

They can be set and read without a card; only the products themselves need one.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from experiment.threads import running_on
from flexround.activations.schemes import StaticPerTensor
from flexround.reconstruction.precision import tensor_float32
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_reconstruction import (
    GRID,
    RANGES,
    SETTING,
    adapter,
    calibration,
)

matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
STATIC = StaticPerTensor(8, False, 8, 8, None, 8, "quant")
FLOAT32, TF32 = (False, False), (True, True)


def allowed():
    """Return whether TF32 may be taken for (products, convolutions), by both of torch's names."""
    new = matmul.fp32_precision == "tf32", cudnn.conv.fp32_precision == "tf32"
    assert new == (matmul.allow_tf32, cudnn.allow_tf32)
    return new


@pytest.fixture(autouse=True)
def as_torch_has_it():
    before = allowed()
    assert before == (False, True), "torch takes TF32 for convolutions unless it is told"
    yield
    assert allowed() == before


class Watched(torch.autograd.Function):
    """The identity, which notes the switches in its backward pass."""

    @staticmethod
    def forward(ctx, x, seen):
        """Return x."""
        ctx.seen = seen
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        """Note the switches."""
        ctx.seen.append(("backward", allowed()))
        return slope, None


def seen_in(setting, monkeypatch, activation):
    """Return the switches in all forward passes, in those that learn, and in backward passes."""
    seen, target, plain = [], adapter(), nn.functional.conv2d

    def conv2d(*args):
        seen.append(("learning" if torch.is_grad_enabled() else "forward", allowed()))
        return Watched.apply(plain(*args), seen)

    monkeypatch.setattr(nn.functional, "conv2d", conv2d)
    setting(
        target, calibration(8), quantizer=METHODS["flexround"], grid=GRID, ranges=RANGES,
        generator=torch.Generator().manual_seed(0), activation=activation,
    )  # fmt: skip
    return {
        kind: {found for name, found in seen if name == kind}
        for kind in ("forward", "learning", "backward")
    }


@pytest.mark.parametrize("act", [False, True], ids=["weights", "step sizes"])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_iterations_take_what_they_say_both_ways_and_all_else_float32(precision, act, monkeypatch):
    # The check that there is an NVIDIA GPU is another test's.
    monkeypatch.setattr("flexround.reconstruction.checks.check_precision", lambda *_: None)
    setting = replace(SETTING, iters=2, precision=precision)
    if act:
        setting = replace(setting, act_steps="after", act_iters=2)
    seen = seen_in(setting, monkeypatch, STATIC if act else None)
    own = {TF32} if precision == "tf32" else {FLOAT32}
    assert seen == {"forward": {FLOAT32}, "learning": own, "backward": own}


def test_a_runs_evaluation_is_in_float32():
    with running_on(torch.get_num_threads()):
        assert allowed() == FLOAT32


def test_a_setting_for_all_of_torch_does_not_come_through():
    before = torch.backends.fp32_precision
    with tensor_float32(False):
        torch.backends.fp32_precision = "tf32"
        try:
            with tensor_float32(False):
                found = matmul.fp32_precision, cudnn.conv.fp32_precision
        finally:
            torch.backends.fp32_precision = before
    assert found == ("ieee", "ieee")
