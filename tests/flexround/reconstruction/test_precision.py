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
from flexround.reconstruction.precision import check_precision, precision_on
from flexround.utils.tensor_float32 import tensor_float32
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_reconstruction import (
    GRID,
    RANGES,
    SETTING,
    adapter,
    calibration,
    quantize,
)

matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
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


@pytest.mark.parametrize(
    ("capability", "used"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((12, 0), "bfloat16")]
)
def test_auto_is_bfloat16_where_a_card_has_it(capability, used, monkeypatch):
    """Compute capability 7.5 is Turing, 8.0 Ampere, the first with bfloat16."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    check_precision("auto", GPU)
    assert precision_on(GPU, "auto") == used
    assert precision_on(CPU, "auto") == "float32"
    for chosen in ("float32", "tf32", "bfloat16"):
        assert precision_on(GPU, chosen) == chosen


@pytest.mark.parametrize("used", ["float32", "bfloat16"])
def test_auto_computes_as_what_it_stands_for(used, monkeypatch):
    """Every code and scale of the run that names it; the device's answer is planted."""
    monkeypatch.setattr("flexround.reconstruction.job.precision_on", planted(used))
    (_, auto), (_, named) = (
        quantize(replace(SETTING, iters=3, precision=name)) for name in ("auto", used)
    )
    other = "bfloat16" if used == "float32" else "float32"
    _, others = quantize(replace(SETTING, iters=3, precision=other))
    assert all(torch.equal(held.codes, named[name].codes) for name, held in auto.items())
    assert all(torch.equal(held.scale, named[name].scale) for name, held in auto.items())
    assert not all(torch.equal(held.scale, others[name].scale) for name, held in auto.items())


def planted(used):
    """Return precision_on of a device where auto is used."""
    return lambda _, precision: used if precision == "auto" else precision
