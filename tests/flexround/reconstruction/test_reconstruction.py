"""The loop: streams, targets, reports, determinism."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from flexround.attach import attach
from flexround.grid import Grid, PerTensor
from flexround.models.vision import VisionAdapter
from flexround.quantizers.rtn import RTN
from flexround.ranges import LpSearch
from flexround.reconstruction.callbacks import ReportLog
from flexround.reconstruction.job import UnitJob
from flexround.reconstruction.reconstruction import Reconstruction
from flexround.reconstruction.unit import reconstruction_loss
from tests.flexround.quantizers.methods import METHODS

CPU = torch.device("cpu")
GRID = Grid(3, True, PerTensor())
RANGES = LpSearch(2.4, 80, 0.01)
SETTING = Reconstruction(
    unit="block", iters=40, lr=5e-3, batch_size=8, schedule="cosine", inputs="quant",
    act_steps="start", act_lr=1e-3, act_iters=0, act_inputs="quant",
    quant_prob=0.5, keep_best=False, precision="float32", compile=False,
)  # fmt: skip


class BasicBlock(nn.Module):
    """A residual block; its name makes it one unit."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x):
        """Return relu(conv2(relu(conv1(x))) + x)."""
        return self.relu(self.conv2(self.relu(self.conv1(x))) + x)


def adapter(first_last_bits=8):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), BasicBlock(), BasicBlock(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    return VisionAdapter(net, torch.randn(2, 3, 8, 8), first_last_bits, CPU)


def calibration(n=32):
    return [torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))]


def quantize(setting=SETTING, method="flexround", seed=0, samples=32, callbacks=(), grid=GRID):
    target = adapter()
    codes = setting(
        target, calibration(samples), quantizer=METHODS[method], grid=grid, ranges=RANGES,
        generator=torch.Generator().manual_seed(seed), callbacks=callbacks,
    )  # fmt: skip
    return target, codes


def test_the_loss_sums_over_channels_and_averages_the_rest():
    out, target = torch.randn(4, 5, 3, 3), torch.randn(4, 5, 3, 3)
    expected = sum((out[:, c] - target[:, c]) ** 2 for c in range(5)).mean()
    torch.testing.assert_close(reconstruction_loss(out, target, 1), expected)


@pytest.mark.parametrize("unit", ["block", "layer"])
@pytest.mark.parametrize("method", ["flexround", "adaround", "adaquant"])
def test_reconstruction_beats_its_starting_point(method, unit):
    reports, lr = ReportLog(), 5e-2 if method == "adaround" else 5e-3
    quantize(replace(SETTING, unit=unit, lr=lr, iters=100), method, callbacks=[reports])
    inner = [b for b in reports.blocks if b.name.startswith(("2", "3"))]
    assert sum(b.error_after for b in inner) < 0.9 * sum(b.error_before for b in inner)


def test_every_layer_is_quantized_and_reported_with_its_bits():
    reports = ReportLog()
    target, codes = quantize(callbacks=[reports])
    assert [b.name for b in reports.blocks] == ["0", "2", "3", "6"]
    assert reports.blocks[0].layers == {"0": 8}
    assert reports.blocks[1].layers == {"2.conv1": 3, "2.conv2": 3}
    assert reports.blocks[-1].layers == {"6": 8}
    for name, integers in codes.items():
        layer = target.model.get_submodule(name)
        assert type(layer) in (nn.Conv2d, nn.Linear)
        assert torch.equal(layer.weight, integers.dequantize())
        assert len(layer.weight.unique()) <= 2**integers.grid.bits


@pytest.mark.parametrize("iters", [40, 500])
def test_a_report_holds_the_curve_that_observers_are_told_thinned(iters):
    told = {}

    class Watch(ReportLog):
        def step(self, unit, iteration, error):
            told.setdefault(unit, []).append([iteration, error])

    reports = Watch()
    quantize(replace(SETTING, iters=iters), callbacks=[reports])
    for block in reports.blocks:
        seen = told[block.name]
        assert (block.curve[0], block.curve[-1]) == (seen[0], seen[-1])
        assert all(point in seen for point in block.curve)
        assert len(block.curve) == min(len(seen), 33)
        assert [i for i, _ in block.curve] == sorted({i for i, _ in block.curve})


def test_what_learns_nothing_has_no_curve():
    reports = ReportLog()
    quantize(method="rtn", callbacks=[reports])
    assert [block.curve for block in reports.blocks] == [[], [], [], []]


def test_the_same_seed_gives_the_same_codes_and_another_seed_others():
    _, first = quantize(seed=0)
    _, again = quantize(seed=0)
    _, other = quantize(seed=1)
    assert all(torch.equal(first[k].codes, again[k].codes) for k in first)
    assert any(not torch.equal(first[k].codes, other[k].codes) for k in first)


def test_the_global_random_state_is_left_alone():
    target = adapter()
    before = torch.get_rng_state()
    SETTING(
        target, calibration(), quantizer=METHODS["flexround"], grid=GRID, ranges=RANGES,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert torch.equal(before, torch.get_rng_state())


def test_no_iterations_is_round_to_nearest():
    _, learned = quantize(replace(SETTING, iters=0))
    _, rtn = quantize(method="rtn")
    assert all(torch.equal(learned[k].dequantize(), rtn[k].dequantize()) for k in rtn)


@pytest.mark.parametrize("inputs", ["quant", "fp"])
def test_the_target_is_full_precision_and_the_input_the_quantized_prefix(inputs):
    """error_before of a block, worked out by hand from two whole models."""
    reports = ReportLog()
    target, _ = quantize(replace(SETTING, inputs=inputs, iters=0), "rtn", callbacks=[reports])
    fp = adapter().model
    batch = calibration()[0]
    stem, first = target.model[:2], target.model[2]
    student_in = stem(batch) if inputs == "quant" else fp[:2](batch)
    expected = (first(student_in) - fp[2](fp[:2](batch))).pow(2).sum(1).mean()
    torch.testing.assert_close(reports.blocks[1].error_before, expected.item())
    second_in = target.model[:3](batch) if inputs == "quant" else fp[:3](batch)
    expected = (target.model[3](second_in) - fp[:4](batch)).pow(2).sum(1).mean()
    torch.testing.assert_close(reports.blocks[2].error_before, expected.item())


def test_a_layers_target_includes_its_activation():
    reports = ReportLog()
    quantize(replace(SETTING, unit="layer", iters=0), "rtn", callbacks=[reports])
    assert [b.name for b in reports.blocks] == [
        "0",
        "2.conv1",
        "2.conv2",
        "3.conv1",
        "3.conv2",
        "6",
    ]
    fp, half = adapter().model, copy.deepcopy(adapter().model)
    batch = calibration()[0]
    for part, grid in ((half[0], replace(GRID, bits=8)), (half[2].conv1, GRID)):
        part.weight.data = RTN(part.weight, grid=grid, ranges=RANGES)(part.weight)
    error = half[2].conv1(half[:2](batch)).relu() - fp[2].conv1(fp[:2](batch)).relu()
    torch.testing.assert_close(reports.blocks[1].error_before, error.pow(2).sum(1).mean().item())


def test_a_loss_that_is_not_finite_names_the_block():
    with pytest.raises(ValueError, match=r"block 0: the loss is (nan|inf) .*lower recon.lr"):
        quantize(replace(SETTING, lr=1e30))


@pytest.mark.parametrize(
    ("quant", "rates"),
    [("flexround", "recon.lr"), ("adaquant", "quant.lr_range and quant.lr_v"),
     ("adaquant_flexround", "recon.lr and quant.lr_v"),
     ("flexround_lwc", "recon.lr and quant.lr_ends")],
)  # fmt: skip
def test_a_loss_that_is_not_finite_names_the_rates_that_the_method_has(quant, rates, monkeypatch):
    """AdaQuant takes no recon.lr=, which it would be refused with."""
    own = {name: 1e38 for name in ("lr_v", "lr_range", "lr_ends") if f".{name}" in rates}
    given = METHODS[quant]
    monkeypatch.setitem(METHODS, quant, partial(given.func, **{**given.keywords, **own}))
    lr = SETTING.lr if own else 1e30
    with pytest.raises(ValueError, match=rf"the loss is (nan|inf) .*; lower {rates}$"):
        quantize(replace(SETTING, lr=lr), quant)


def test_a_last_step_that_breaks_a_block_is_seen():
    """The loss is read before the step; after the only one the weights are not finite."""
    with pytest.raises(ValueError, match=r"block 0: its error is (nan|inf) once quantized"):
        quantize(replace(SETTING, lr=1e30, iters=1))


def test_fewer_samples_than_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"num_samples=4 is smaller than recon.batch_size=8"):
        quantize(samples=4)


@pytest.mark.parametrize(
    ("option", "value"),
    [("unit", "stage"), ("schedule", "step"), ("inputs", "both"), ("iters", -1),
     ("batch_size", 0), ("lr", 0.0), ("lr", float("nan"))],
)  # fmt: skip
def test_settings_out_of_range_are_refused(option, value):
    with pytest.raises(ValueError, match=f"recon.{option}={value}"):
        replace(SETTING, **{option: value})


def test_groups_that_fit_no_stem_leave_it_per_channel():
    from flexround.grid import PerChannel, PerGroup

    _, codes = quantize(grid=Grid(3, True, PerGroup(18)))
    assert codes["0"].grid.granularity == PerChannel()
    assert codes["2.conv1"].grid.granularity == PerGroup(18)


def plain_pass(job, unit, inputs, targets, work):
    """Return the error by a pass of its own: the walk over the blocks makes its pass again."""
    return job.error(unit, inputs, targets)


@pytest.mark.parametrize("method", ["flexround", "adaround", "rtn"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"unit": "layer"}, {"inputs": "fp"}, {"inputs": "mixed"}],
    ids=["block", "layer", "fp", "mixed"],
)
def test_one_pass_for_the_error_and_the_stream_changes_no_bit(monkeypatch, method, changes):
    found = []
    for shares in (True, False):
        if not shares:
            monkeypatch.setattr(UnitJob, "error_in_the_end", plain_pass)
        reports = ReportLog()
        _, codes = quantize(replace(SETTING, iters=5, **changes), method, callbacks=[reports])
        found.append((codes, reports.blocks))
    (codes, blocks), (plain_codes, plain_blocks) = found
    for name, integers in codes.items():
        assert torch.equal(integers.codes, plain_codes[name].codes)
        assert torch.equal(integers.scale, plain_codes[name].scale)
    for block, plain in zip(blocks, plain_blocks, strict=True):
        assert (block.error_before, block.error_after) == (plain.error_before, plain.error_after)
        assert block.curve == plain.curve


@pytest.mark.parametrize(("method", "passes"), [("rtn", 2), ("flexround", 3)])
def test_each_block_sees_the_calibration_set_as_seldom_as_can_be(method, passes):
    """For the targets, the error once quantized (and the stream), and the error before."""
    target, seen = adapter(), Counter()

    def count(module, args):
        seen[module] += not torch.is_grad_enabled() and len(args[0]) == 32

    inside = [target.model[2].conv1, target.model[3].conv1]  # called where nothing stands in
    for layer in inside:
        layer.register_forward_pre_hook(count)
    replace(SETTING, iters=1, batch_size=32)(
        target, calibration(), quantizer=METHODS[method], grid=GRID, ranges=RANGES,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert [seen[layer] for layer in inside] == [passes, passes]


def test_round_to_nearest_starts_where_it_ends():
    """The error before is that of its quantizers, which are what is baked in."""
    reports = ReportLog()
    quantize(replace(SETTING, iters=0), "rtn", callbacks=[reports])
    target = adapter()
    teacher = copy.deepcopy(target.model)
    first = target.blocks()[0]
    (quantizer,) = attach(first.layers, METHODS["rtn"], GRID, RANGES)
    (images,) = calibration()
    error = first.module(images).relu() - teacher[0](images).relu()
    assert quantizer.grid.bits == 8
    expected = error.square().sum(1).mean().item()
    assert reports.blocks[0].error_before == pytest.approx(expected, rel=1e-5)
    assert all(block.error_before == block.error_after for block in reports.blocks)
