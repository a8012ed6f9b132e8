"""Samples held out of calibration: nothing is learned from them, and a unit may end by them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

import flexround
from flexround.activations.schemes import StaticPerTensor
from flexround.grid import Grid, PerChannel
from flexround.ranges import LpSearch
from flexround.reconstruction import early_end
from flexround.reconstruction.callbacks import ReportLog
from flexround.reconstruction.early_end import LOOKS, EarlyEnd
from flexround.reconstruction.unit import reconstruction_loss
from tests.flexround.models.test_language import network, tokens
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_reconstruction import SETTING, adapter

SEEN, HELD = 24, 12  # neither is a multiple of the batch of 8 but the first
STATIC = StaticPerTensor(4, True, 4, 8, None, 64, "quant")  # more first samples than there are
SHORT = replace(SETTING, iters=8)
CASES = {
    "flexround": (SHORT, "flexround", None),
    "layer": (replace(SHORT, unit="layer"), "adaround", None),
    "keep_best": (replace(SHORT, keep_best=True), "signround", None),
    "qdrop": (
        replace(SHORT, inputs="mixed", act_steps="together"),
        "flexround",
        replace(STATIC, ranges_from="fp"),
    ),
    "brecq": (replace(SHORT, act_steps="after", act_iters=5, act_inputs="fp"), "adaquant", STATIC),
    "ranges": (SHORT, "flexround", STATIC),
}


def images(seed, count, size=1.0):
    return size * torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def quantize(setting, method, activation, *parts):
    """Return the quantized adapter, the integers, the activations' ranges and the reports."""
    target, reports = adapter(), ReportLog()
    codes = setting(
        target, [torch.cat(parts)], quantizer=METHODS[method], grid=Grid(3, False, PerChannel()),
        ranges=LpSearch(2.4, 20, 0.01), generator=torch.Generator().manual_seed(0),
        activation=activation, callbacks=[reports],
    )  # fmt: skip
    ranges = {}
    for block in target.blocks() if target.activations else ():
        ranges |= {a.name: a.qparams() for a in target.activations.of(block.name)}
    return target, codes, ranges, reports.blocks


@pytest.mark.parametrize("case", CASES)
def test_a_run_with_samples_held_out_is_the_run_without_them_bit_for_bit(case):
    setting, method, activation = CASES[case]
    seen = images(1, SEEN)
    _, codes, ranges, blocks = quantize(setting, method, activation, seen)
    holding = replace(setting, held_out=HELD)
    # Ten times as large: whatever looked at them would move.
    _, others, other_ranges, other_blocks = quantize(
        holding, method, activation, seen, images(2, HELD, 10.0)
    )
    for name, integers in codes.items():
        for part in ("codes", "scale", "zero_point"):
            assert torch.equal(getattr(integers, part), getattr(others[name], part))
    assert ranges.keys() == other_ranges.keys()
    for name, values in ranges.items():
        assert all(torch.equal(values[key], other_ranges[name][key]) for key in values)
    for block, other in zip(blocks, other_blocks, strict=True):
        assert block.curve == other.curve
        assert block.cost == other.cost
        assert (block.error_before, block.error_after) == (other.error_before, other.error_after)
        assert block.held_out_before is block.held_out_after is None
        assert other.held_out_after > 10 * other.error_after, "its samples are ten times as large"


@pytest.mark.parametrize("case", ["flexround", "qdrop", "brecq"])
def test_the_held_out_error_is_the_loss_of_the_held_out_samples(case):
    """The last unit's output is the network's: its error is that of the whole network."""
    setting, method, activation = CASES[case]
    seen, held = images(1, SEEN), images(2, HELD)
    target, _, _, blocks = quantize(replace(setting, held_out=HELD), method, activation, seen, held)
    with torch.no_grad():
        for batch, error in ((seen, blocks[-1].error_after), (held, blocks[-1].held_out_after)):
            if case == "brecq":  # whose second pass feeds each block the full-precision stream
                continue
            loss = reconstruction_loss(target.model(batch), adapter().model(batch), -1)
            assert error == pytest.approx(loss.item(), rel=1e-4)
    assert all(block.held_out_before > 0 for block in blocks[1:])


@pytest.mark.parametrize("transform", ["none", "awq", "smoothquant"])
def test_what_is_held_out_has_no_part_in_a_transform(transform):
    """The two calibration sets differ in their held-out samples alone."""
    batch = tokens()["input_ids"]
    found = []
    for last in (batch[4:], batch[4:] // 200 + 5):  # a few rare tokens
        options = {"transform": transform, "recon.held_out": 2, "recon.batch_size": 2}
        given = {"input_ids": torch.cat([batch[:4], last])}
        found.append(
            flexround.quantize(
                network("llama"), given, bits=3, options=options | {"recon.iters": 2}
            ).layers
        )
    for name, integers in found[0].items():
        assert torch.equal(integers.codes, found[1][name].codes)
        assert torch.equal(integers.scale, found[1][name].scale)


def script(errors, patience, iters=LOOKS):
    """Return the early end of the given errors, its parameter being the iterations taken."""
    param, left = torch.nn.Parameter(torch.zeros(1)), iter(errors)
    end, taken = EarlyEnd(patience, iters, lambda: next(left), [param]), 0
    for taken in range(1, iters + 1):
        param.data.fill_(taken)
        if end.ends(taken):
            break
    end.restore()
    return taken, param.item(), end.curve


@pytest.mark.parametrize(
    ("errors", "patience", "taken", "kept"),
    [
        ([9, 8, 7, 7, 7, 7, 0], 3, 5, 2),  # as low is not lower
        ([9, 8, 8, 7, 8, 6, 6, 6, 0], 2, 7, 5),  # a lower one is waited for afresh
        ([5, 6, 0], 1, 1, 0),  # the start itself is kept
        ([30 - i for i in range(LOOKS + 1)], 1, LOOKS, LOOKS),
    ],
)
def test_a_unit_ends_after_so_many_looks_without_a_lower_error(errors, patience, taken, kept):
    found, param, curve = script(errors, patience)
    assert (found, param) == (taken, kept)
    assert curve == [[i, errors[i]] for i in range(taken + 1)]


@pytest.mark.parametrize(("iters", "looks"), [(1, 1), (7, 7), (20, 20), (50, 20), (5000, 20)])
def test_the_looks_are_spread_evenly_and_the_last_is_at_the_end(iters, looks):
    _, _, curve = script(range(1000, 0, -1), 1, iters)
    taken = [int(iteration) for iteration, _ in curve]
    assert (taken[0], taken[-1], len(taken)) == (0, iters, looks + 1)
    steps = [b - a for a, b in itertools.pairwise(taken)]
    assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize("case", ["flexround", "qdrop", "brecq", "keep_best", "layer"])
def test_looking_disturbs_nothing_and_the_lowest_is_kept(case, monkeypatch):
    """At ever so much patience the losses are those of a run that never looks."""
    setting, method, activation = CASES[case]
    iters = {"iters": 40, "act_iters": 40, "lr": 0.3, "act_lr": 0.3}
    setting = replace(setting, held_out=HELD, keep_best=False, **iters)
    monkeypatch.setattr(early_end, "LOOKS", 8)
    parts = images(1, SEEN), images(2, HELD)
    _, _, _, plain = quantize(setting, method, activation, *parts)
    _, _, _, patient = quantize(replace(setting, patience=7), method, activation, *parts)
    read, again = dict(plain[0].curve), dict(patient[0].curve)
    together = read.keys() & again.keys()
    assert len(together) >= 4
    assert [read[i] for i in together] == [again[i] for i in together]
    for block in patient:
        errors = [error for _, error in block.held_out_curve]
        assert block.held_out_after == min(errors) <= errors[0] == block.held_out_before
        assert block.iterations == block.held_out_curve[-1][0]
    assert all(block.iterations == 40 and not block.held_out_curve for block in plain)


def test_an_early_end_saves_iterations_and_says_how_many_were_taken():
    setting = replace(SETTING, iters=200, lr=2.0, schedule="constant", held_out=HELD, patience=2)
    _, _, _, blocks = quantize(setting, "flexround", None, images(1, SEEN), images(2, HELD))
    assert any(block.iterations < 200 for block in blocks)
    for block in blocks:
        lowest = min(range(len(block.held_out_curve)), key=lambda i: block.held_out_curve[i][1])
        assert len(block.held_out_curve) - 1 - lowest == 2 or block.iterations == 200
        assert block.cost.flops > 0
    full = quantize(replace(setting, patience=0), "flexround", None, images(1, SEEN),
                    images(2, HELD))[3]  # fmt: skip
    for block, whole in zip(blocks, full, strict=True):
        assert block.cost.flops * 200 == pytest.approx(whole.cost.flops * block.iterations)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"held_out": -1}, "recon.held_out=-1: give 0 or more"),
        ({"patience": -1, "held_out": 4}, "recon.patience=-1: give 0"),
        ({"patience": LOOKS, "held_out": 4}, f"recon.patience={LOOKS}: give 0.* to {LOOKS - 1}"),
        ({"patience": 2}, "recon.patience=2 looks at held-out samples.*give recon.held_out=32"),
    ],
)
def test_what_can_do_nothing_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(SETTING, **changes)


@pytest.mark.parametrize("method", ["flexround", "rtn"])
@pytest.mark.parametrize("held", [29, 36, 100])
def test_what_is_left_must_hold_a_mini_batch(method, held):
    with pytest.raises(ValueError, match=f"recon.held_out={held} of num_samples=36 leaves"):
        quantize(replace(SHORT, held_out=held), method, None, images(1, 36))


def test_the_log_tells_the_held_out_errors_and_the_iterations(caplog):
    setting = replace(SHORT, held_out=HELD)
    with caplog.at_level("INFO"):
        blocks = quantize(setting, "flexround", None, images(1, SEEN), images(2, HELD))[3]
        before, after = blocks[1].held_out_before, blocks[1].held_out_after
        assert f"held out {before:.4g} -> {after:.4g} in " in caplog.text
        assert "iterations in " not in caplog.text
        caplog.clear()
        quantize(replace(setting, patience=19), "flexround", None, images(1, SEEN),
                 images(2, HELD))  # fmt: skip
    assert "in 8 iterations in " in caplog.text
