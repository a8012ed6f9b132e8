"""The losses of a unit's output: squared, relative to each token's size, without the largest."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import numpy
import pytest
import torch
from torch.nn import functional as F

from flexround.grid import Grid, PerChannel
from flexround.models.language_adapter import LanguageAdapter
from flexround.ranges import MinMax
from flexround.reconstruction.unit import Loss, reconstruction_loss
from tests.flexround.models.test_language import CPU, EXAMPLE, halves, network, tokens
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_reconstruction import SETTING, adapter, calibration
from tests.flexround.test_cost import Keep

GRID = Grid(3, False, PerChannel())


def outputs(samples=3, positions=50, channels=40):
    """Return outputs, targets of which some tokens are huge, and which positions count."""
    draws = torch.Generator().manual_seed(0)
    target = torch.randn(samples, positions, channels, generator=draws, dtype=torch.float64)
    target[:, 0] *= 1000
    output = target * (1 + 0.1 * torch.randn(target.shape, generator=draws, dtype=torch.float64))
    mask = torch.rand(samples, positions, generator=draws) < 0.8
    return output.requires_grad_(), target, mask


@pytest.mark.parametrize("masked", [False, True])
def test_relative_is_the_error_in_units_of_what_the_norm_divides_by(masked):
    output, target, mask = outputs()
    counts = mask if masked else torch.ones_like(mask)
    found = reconstruction_loss(output, target, -1, mask if masked else None, kind="relative")
    # target / its root mean square, or by the output's where that is larger
    by_target = F.rms_norm(target, target.shape[-1:], eps=1e-6) / target
    by_output = F.rms_norm(output, output.shape[-1:], eps=1e-6) / output
    scale = torch.minimum(by_target, by_output).detach()
    expected = ((output * scale - target * scale) ** 2).sum(-1)[counts].mean()
    torch.testing.assert_close(found, expected)
    own, theirs = (torch.autograd.grad(loss, output)[0] for loss in (found, expected))
    torch.testing.assert_close(own, theirs)


def test_a_token_gone_astray_counts_for_four_times_the_channels_at_most():
    output, target, _ = outputs()
    with torch.no_grad():
        output[0, 1] = 1e6 * torch.sign(target[0, 1])
        output[1, 2] = -1.0001 * target[1, 2]
    channels = output.shape[-1]
    for sample, position, most in ((0, 1, 1.001), (1, 2, 4)):
        one, other = output[sample, position].detach(), target[sample, position]
        found = reconstruction_loss(one[None], other[None], -1, kind="relative")
        assert 0.99 * most * channels < found <= most * channels


@pytest.mark.parametrize("factor", [1e-2, 1e3])
def test_the_size_of_a_token_is_nothing_to_the_relative_loss(factor):
    output, target, _ = outputs()
    output, target = output.detach(), target.clone()
    before = reconstruction_loss(output, target, -1, kind="relative")
    output[1], target[1] = output[1] * factor, target[1] * factor
    after = reconstruction_loss(output, target, -1, kind="relative")
    assert after.item() == pytest.approx(before.item(), rel=1e-2 if factor < 1 else 1e-5)
    assert reconstruction_loss(output, target, -1) != reconstruction_loss(*outputs()[:2], -1)


def test_a_token_of_zeros_divides_by_no_zero():
    output, target, _ = outputs()
    target[0, 3] = 0
    reconstruction_loss(output, target, -1, kind="relative").backward()
    assert output.grad.isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_trimmed_is_without_a_thousandth_of_the_values_those_that_err_most(channel_dim, masked):
    output, target, mask = outputs()
    counts = mask if masked else torch.ones_like(mask)
    error = (output - target).detach()[counts].flatten().abs().sort().values.numpy()
    kept = error[: len(error) - len(error) // 1000]
    expected = numpy.square(kept).sum() / int(counts.sum())
    one, other = (t.movedim(-1, channel_dim) for t in (output, target))
    found = reconstruction_loss(one, other, channel_dim, mask if masked else None, kind="trimmed")
    assert found.item() == pytest.approx(expected, rel=1e-12)
    found.backward()
    untaught = (output.grad == 0).sum()
    assert untaught == len(error) // 1000 + (~counts).sum() * output.shape[-1]


def test_trimmed_leaves_out_one_value_at_least():
    output, target = torch.tensor([[1.0, 5.0, 2.0]]), torch.zeros(1, 3)
    assert reconstruction_loss(output, target, -1, kind="trimmed") == 1 + 4


def test_auto_rounds_own_loss_where_it_is_installed():
    module = pytest.importorskip("auto_round.algorithms.quantization.sign_roundv2.quantizer")
    theirs = module.SignRoundV2Quantizer._get_loss
    output, target, _ = outputs()
    expected = theirs(
        SimpleNamespace(_use_outlier_suppressed_loss=True, amp=False), output, target, None, None
    )
    found = reconstruction_loss(output, target, -1, kind="trimmed")
    torch.testing.assert_close(
        (found / output.shape[-1]).float(), expected
    )  # a mean over channels, too


def learned(method, **settings):
    """Return the integers, and the reports."""
    keep = Keep()
    setting = replace(SETTING, iters=20, batch_size=2, **settings)
    integers = setting(
        LanguageAdapter(network("llama"), EXAMPLE, CPU), halves(tokens("right")),
        quantizer=METHODS[method], grid=GRID, ranges=MinMax(),
        generator=torch.Generator().manual_seed(0), callbacks=[keep],
    )  # fmt: skip
    return integers, keep.reports


@pytest.mark.parametrize("method", ["flexround", "signround", "lrq", "lwc", "adaquant"])
def test_every_method_lowers_it_and_finds_other_codes_by_it(method):
    plain, _ = learned(method)
    for loss in ("relative", "trimmed"):
        found, reports = learned(method, loss=loss)
        assert sum(r.error_after for r in reports) < sum(r.error_before for r in reports), loss
        assert any(not torch.equal(found[n].codes, plain[n].codes) for n in found), loss


@pytest.mark.parametrize("loss", ["relative", "trimmed"])
def test_the_last_blocks_own_loss_stands_above_it(loss):
    _, reports = learned("flexround", loss=loss, last_loss="logits")
    _, plain = learned("flexround", loss=loss)
    assert [r.error_after for r in reports[:-1]] == [r.error_after for r in plain[:-1]]
    assert reports[-1].error_after != plain[-1].error_after


def test_images_have_no_relative_loss_and_a_trimmed_one():
    setting = replace(SETTING, loss="relative")
    with pytest.raises(
        ValueError, match=r"relative is of tokens.* gives images; give recon\.loss="
    ):
        setting.check(adapter(), calibration(), GRID, METHODS["flexround"])
    replace(SETTING, loss="trimmed").check(adapter(), calibration(), GRID, METHODS["flexround"])


@pytest.mark.parametrize("kept", [{"keep_best": True}, {"held_out": 4, "patience": 2}])
def test_no_early_parameters_are_kept_of_a_method_that_decides_in_the_end(kept):
    """AdaRound's soft weight begins at the full-precision one, where its error is the least."""
    ((name, given),) = list(kept.items())[-1:]
    with pytest.raises(ValueError, match=f"recon.{name}={str(given).lower()}: AdaRound decides"):
        replace(SETTING, **kept).check_method(METHODS["adaround"], GRID)
    replace(SETTING, **kept).check_method(METHODS["flexround"], GRID)


@pytest.mark.parametrize("loss", ["relative", "trimmed"])
def test_a_method_that_weighs_a_term_of_its_own_against_the_error_is_refused(loss):
    setting = replace(SETTING, loss=loss)
    with pytest.raises(ValueError, match=f"loss={loss}: what AdaRound adds to the loss"):
        setting.check_method(METHODS["adaround"], GRID)
    setting.check_method(METHODS["flexround"], GRID)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="loss=huber: give one of squared, relative, trimm"):
        replace(SETTING, loss="huber")
    assert get_args(Loss)[0] == SETTING.loss
