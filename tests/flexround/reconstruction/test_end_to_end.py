"""Scales learned end to end: codes stay, every scale follows the slope of one loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flexround.activations.schemes import StaticPerTensor
from flexround.grid import Grid, PerChannel, PerGroup, PerTensor, QuantizedTensor
from flexround.levels import NF4
from flexround.models.language_adapter import LanguageAdapter
from flexround.ranges import MinMax
from flexround.reconstruction.end_to_end import LOOKED_AT, NAME, Scaled
from tests.conftest import TINY
from tests.flexround.models.test_language import CPU, EXAMPLE, halves, network, tokens
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_checkpoints import KEY, Dying, FileCheckpoints, Killed
from tests.flexround.reconstruction.test_reconstruction import SETTING, adapter, calibration
from tests.flexround.test_cost import Keep

GRIDS = {
    "groups": Grid(3, False, PerGroup(8)), "row": Grid(2, True, PerChannel()),
    "tensor": Grid(4, False, PerTensor()),
}  # fmt: skip
SHORT = replace(SETTING, iters=2, batch_size=2, e2e_iters=8, e2e_lr=1e-2, e2e_batch_size=2)


def quantized(setting, family="llama", grid=GRIDS["groups"], padding=None, **changes):
    """Return (adapter, integers, reports) of a language model."""
    target, keep = LanguageAdapter(network(family), EXAMPLE, CPU), Keep()
    integers = setting(
        target, halves(tokens(padding)), quantizer=METHODS["flexround"], grid=grid,
        ranges=MinMax(), generator=torch.Generator().manual_seed(0), callbacks=[keep], **changes,
    )  # fmt: skip
    return target, integers, keep.reports


def divergence(target, family, batch):
    """Return the mean divergence from the full-precision network over the tokens that count."""
    exact = LanguageAdapter(network(family), EXAMPLE, CPU).forward(batch).log_softmax(-1)
    own = target.forward(batch).log_softmax(-1)
    each = F.kl_div(own, exact, reduction="none", log_target=True).sum(-1)
    counts = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    return each[counts].mean().item()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("family", "padding"), [("llama", "right"), ("gpt2", None), ("opt", None)])
def test_the_codes_stay_and_the_network_has_the_scales_that_are_returned(family, padding, grid):
    plain, before, _ = quantized(replace(SHORT, e2e_iters=0), family, GRIDS[grid], padding)
    target, integers, reports = quantized(SHORT, family, GRIDS[grid], padding)
    assert integers.keys() == before.keys()
    for name, held in integers.items():
        assert torch.equal(held.codes, before[name].codes)
        assert torch.equal(held.zero_point, before[name].zero_point)
        assert (held.scale != before[name].scale).any(), name
        weight = target.model.get_submodule(name).weight
        assert weight.shape in (held.codes.shape, held.codes.T.shape)
        turned = weight.T if family == "gpt2" else weight
        assert torch.equal(turned, held.dequantize())
    batch = tokens(padding)
    assert len(batch["input_ids"]) <= LOOKED_AT
    report = reports[-1]
    assert (report.name, report.iterations, report.layers) == (NAME, 8, {})
    assert report.error_before == pytest.approx(divergence(plain, family, batch), rel=1e-4)
    assert report.error_after == pytest.approx(divergence(target, family, batch), rel=1e-4)
    assert report.error_after < report.error_before


def test_a_scales_slope_is_that_of_its_weights():
    """D loss / d log s = the sum over its group of d loss / d w times w."""
    grid = GRIDS["groups"]
    layer, x = nn.Linear(16, 4, bias=False), torch.randn(5, 16)
    scale, zero = MinMax()(grid.granularity.group(layer.weight.detach()), grid)
    codes = grid.encode(grid.granularity.group(layer.weight.detach()), scale, zero).view(4, 16)
    held = QuantizedTensor(codes.to(torch.int16), scale, zero, grid)
    weight = held.dequantize().requires_grad_()
    (x @ weight.T).square().sum().backward()
    scaled = Scaled(held, CPU)
    steps = replace(held, scale=torch.ones_like(scale)).dequantize()
    torch.testing.assert_close(scaled(steps), weight)
    (x @ scaled(steps).T).square().sum().backward()
    expected = grid.granularity.group(weight.grad * weight).sum(1, keepdim=True)
    torch.testing.assert_close(scaled.change.grad, expected)


def test_gradients_do_not_vanish_in_float16():
    """Adam's first step is against a gradient's sign; of one that is 0 it is none."""
    changes, errors = [], []
    for dtype in (torch.float16, torch.float32):
        scales = []
        for iters in (0, 1):
            target = LanguageAdapter(network("llama", torch.float16).to(dtype), EXAMPLE, CPU)
            keep = Keep()
            integers = replace(SHORT, iters=0, e2e_batch_size=6, e2e_iters=iters)(
                target, halves(tokens()), quantizer=METHODS["flexround"],
                grid=Grid(6, False, PerGroup(8)), ranges=MinMax(),
                generator=torch.Generator().manual_seed(0), callbacks=[keep],
            )  # fmt: skip
            scales.append(torch.cat([held.scale.flatten() for held in integers.values()]))
        changes.append((scales[1] - scales[0]).sign())
        errors.append(keep.reports[-1].error_before)
    assert errors[0] == pytest.approx(errors[1], rel=0.02)
    assert errors[1] < 1e-5, "the divergence is small"
    assert (changes[0] != 0).all()
    assert (changes[0] == changes[1]).double().mean() > 0.98


def test_a_rate_of_nothing_leaves_the_network_as_it_is():
    plain, before, _ = quantized(replace(SHORT, e2e_iters=0))
    target, integers, _ = quantized(replace(SHORT, e2e_lr=1e-30))
    for name, held in integers.items():
        assert torch.equal(held.scale, before[name].scale)
    batch = tokens()
    assert torch.equal(target.forward(batch), plain.forward(batch))


def test_what_is_held_out_has_no_part():
    batch = tokens()["input_ids"]
    found = []
    for last in (batch[4:], batch[4:].flip(1)):
        target = LanguageAdapter(network("llama"), EXAMPLE, CPU)
        given = [{"input_ids": torch.cat([batch[:4], last])}]
        integers = replace(SHORT, held_out=2)(
            target, given, quantizer=METHODS["flexround"], grid=GRIDS["row"], ranges=MinMax(),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        found.append([held.scale for held in integers.values()])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("lives", [1, 2, 3])
def test_a_run_that_was_cut_off_ends_as_the_undisturbed_one(lives, tmp_path):
    target, expected, reports = quantized(SHORT)
    assert len(reports) == 3
    with pytest.raises(Killed):
        quantized(SHORT, checkpoints=Dying(tmp_path, KEY, lives))
    again, found, told = quantized(SHORT, checkpoints=FileCheckpoints(tmp_path, KEY))
    assert all(torch.equal(held.scale, expected[name].scale) for name, held in found.items())
    assert torch.equal(again.forward(tokens()), target.forward(tokens()))
    assert [report.error_after for report in told] == [report.error_after for report in reports]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"grid": replace(GRIDS["row"], bits=4, levels=NF4())}, "not grid=nf4; give grid="),
        ({"activation": StaticPerTensor(4, True, 4, 8, None, 8, "quant")}, "give activation=none"),
    ],
)
def test_what_it_is_not_for_is_refused(changed, told):
    with pytest.raises(ValueError, match=f"recon.e2e_iters=8 is for .*{told}") as refused:
        quantized(SHORT, **changed)
    assert "\n" not in str(refused.value)


def test_images_are_refused():
    told = r"recon.e2e_iters=8 learns from the next token .* predicts none; give recon.e2e_iters=0"
    with pytest.raises(ValueError, match=told):
        replace(SETTING, e2e_iters=8).check(
            adapter(), calibration(), GRIDS["row"], METHODS["flexround"]
        )


@pytest.mark.parametrize(
    ("args", "messages"),
    [
        (["recon.e2e_lr=1e-2"], ["recon.e2e_lr=1e-2 does nothing with the chosen recon.e2e_iters"]),
        (["recon.e2e_iters=-1"], ["recon.e2e_iters=-1", "give 0 or more"]),
        (["recon.e2e_iters=2", "recon.e2e_batch_size=0"], ["recon.e2e_batch_size=0: give at"]),
        (["recon.e2e_iters=2", "recon.e2e_lr=0"], ["recon.e2e_lr=0", "above 0"]),
        (
            ["quant=rtn", "recon.e2e_iters=2"],
            ["recon.e2e_iters=2 does nothing with the chosen quant"],
        ),
    ],
)
def test_bad_input_is_one_line(cli, args, messages):
    outcome = cli(*TINY, *args)
    assert outcome.status == 1
    for message in messages:
        assert message in outcome.err.splitlines()[-1]


def test_blocks_that_come_one_at_a_time_are_refused(cli):
    outcome = cli("model=tiny_llama", "offload=true", "recon.e2e_iters=2")
    assert outcome.status == 1
    assert "recon.e2e_iters=2 has the whole network on the device" in outcome.err.splitlines()[-1]
