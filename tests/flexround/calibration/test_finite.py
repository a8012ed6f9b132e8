"""Values that are not finite are named where they come from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from flexround.calibration.activation_cache import ActivationCache
from flexround.calibration.finite import check_finite, first_not_finite
from flexround.grid import Grid, PerTensor
from flexround.models.language_adapter import LanguageAdapter
from flexround.ranges import MinMax
from flexround.reconstruction.layerwise import Solve
from tests.flexround.activations.test_activations import BRECQ, QDROP, STATIC, draws
from tests.flexround.models.test_language import EXAMPLE, network
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_reconstruction import (
    CPU,
    GRID,
    RANGES,
    SETTING,
    adapter,
    calibration,
)
from tests.flexround.solvers.test_solvers import PLAIN

LOOPS = {
    "block": (SETTING, METHODS["flexround"], None),
    "rtn": (SETTING, METHODS["rtn"], None),
    "layer": (replace(SETTING, unit="layer"), METHODS["adaround"], None),
    "brecq": (BRECQ, METHODS["flexround"], STATIC),
    "qdrop": (QDROP, METHODS["flexround"], replace(STATIC, ranges_from="fp")),
    "solve": (Solve(8, True), PLAIN, None),
    "solve_acts": (Solve(8, False), PLAIN, STATIC),
}
BAD = [float("nan"), float("inf")]
loops = pytest.mark.parametrize("loop", LOOPS)
bad = pytest.mark.parametrize("value", BAD)


def quantize(loop, target, batches, **options):
    setting, quantizer, activation = LOOPS[loop]
    setting(
        target, batches, quantizer=quantizer, grid=GRID, ranges=RANGES, generator=draws(),
        activation=activation, **options,
    )  # fmt: skip


@pytest.mark.parametrize("at", [0, 63, 64, 200])
def test_the_first_sample_is_found(at):
    values = torch.zeros(201, 3, 2)
    assert first_not_finite(values) is None
    values[at:, 1, 1] = torch.nan
    assert first_not_finite(values) == at
    assert first_not_finite(torch.arange(9)) is None
    with pytest.raises(ValueError, match=f"sample {at} is bad"):
        list(check_finite(values.split(7), "sample {sample} is bad"))


@loops
@bad
def test_calibration_data(loop, value):
    images = calibration(32)[0].clone()
    images[13, 2, 5, 5] = value
    with pytest.raises(ValueError, match=r"^calibration data: sample 13 holds values that are not"):
        quantize(loop, adapter(), images.split(8))


def spoil(conv, value):
    """Give one output channel of a convolution a bias of value."""
    bias = conv.bias.detach().clone()
    bias[1] = value
    conv.bias = nn.Parameter(bias, requires_grad=False)


@loops
@bad
def test_the_full_precision_block_that_makes_them(loop, value):
    target = adapter()
    spoil(target.model[2].conv2, value)
    message = r"(block|activation|layer) 2.* not finite"
    with pytest.raises(ValueError, match=message) as error:
        quantize(loop, target, calibration(32))
    assert "lower recon.lr" not in str(error.value)


@loops
@bad
def test_what_a_layer_inside_of_a_block_makes(loop, value):
    target = adapter()
    spoil(target.model[2].conv1, value)
    message = r"block 2 makes values that are not|(activation 2.relu|layer 2.conv2).* not finite"
    with pytest.raises(ValueError, match=message):
        quantize(loop, target, calibration(32))


@pytest.mark.parametrize("loop", ["block", "layer", "brecq"])
def test_the_block_is_named_as_the_full_precision_ones(loop):
    target = adapter()
    target.model[2].conv2.bias = nn.Parameter(torch.full((6,), torch.inf), requires_grad=False)
    message = (
        "^the full-precision network's block 2 makes values that are not finite of inputs that "
        "are, first of calibration sample 0$"
    )
    with pytest.raises(ValueError, match=message):
        quantize(loop, target, calibration(32))


@bad
def test_what_comes_before_the_first_block(value):
    model = network("llama")
    model.model.embed_tokens.weight.data[7] = value
    target = LanguageAdapter(model, EXAMPLE | {"input_ids": torch.zeros(2, 4).long()}, CPU)
    ids = torch.randint(10, 50, (8, 6), generator=draws())
    ids[5, 3] = 7
    with pytest.raises(ValueError, match=r"first block model.layers.0 is not finite.*sample 5"):
        replace(SETTING, batch_size=2)(
            target, [{"input_ids": ids}], quantizer=METHODS["rtn"],
            grid=Grid(8, False, PerTensor()), ranges=MinMax(), generator=draws(),
        )  # fmt: skip


def test_a_stream_in_float16_tells_overflow_from_what_was_not_finite():
    cache = ActivationCache(torch.float16)
    assert first_not_finite(cache.store([torch.tensor([[1.0], [torch.nan]])])) == 1
    with pytest.raises(ValueError, match=r"ends at 65504, an activation is 7e\+04"):
        cache.store([torch.tensor([[7e4], [torch.nan]])])
