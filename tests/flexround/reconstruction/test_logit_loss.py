"""Loss of the last block through the head, held to autograd over the whole network (LFQ)."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from flexround.calibration.outputs import first_of
from flexround.grid import Grid, PerChannel
from flexround.models.language_adapter import LanguageAdapter
from flexround.ranges import MinMax
from flexround.reconstruction import logit_loss
from flexround.reconstruction.checkpoints import FileCheckpoints
from flexround.reconstruction.logit_loss import LogitLoss
from flexround.transforms.base import apply
from tests.flexround.models.test_families import adapter_of
from tests.flexround.models.test_language import CPU, EXAMPLE, halves, network, tokens
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_checkpoints import KEY, Dying, Killed
from tests.flexround.reconstruction.test_reconstruction import SETTING, adapter, calibration
from tests.flexround.test_cost import Keep
from tests.flexround.transforms.test_transforms import TRANSFORMS
from tests.flexround.transforms.test_transforms import calibration as transformed_on

CAUSAL = ("gpt2", "opt", "llama")
PADDINGS = (None, "right", "left")
LOGITS = replace(SETTING, iters=20, batch_size=2, last_loss="logits")
KINDS = ("logits", "logits_mse", "next_token")
families = pytest.mark.parametrize("family", CAUSAL)
paddings = pytest.mark.parametrize("padding", PADDINGS)
ALL = torch.arange(6)


def pair(family, dtype=torch.float64):
    """Return a network, and one whose last layer has other weights."""
    exact = network(family, dtype)
    student = copy.deepcopy(exact)
    draws = torch.Generator().manual_seed(3)
    for parameter in LanguageAdapter(student, EXAMPLE, CPU).blocks()[-1].module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=draws, dtype=dtype)
    return exact, student


def passed(model, batch):
    """Return the last layer's outputs, gradients reaching them, and the logits made of them."""
    own, seen = LanguageAdapter(model, EXAMPLE, CPU), []

    def keep(_, __, output):
        seen.append(first_of(output).detach().requires_grad_())
        return (seen[0], *output[1:]) if isinstance(output, tuple) else seen[0]

    handle = own.blocks()[-1].module.register_forward_hook(keep)
    logits = own.forward(batch)
    handle.remove()
    return seen[0], logits


def expected(kind, logits, wanted, batch):
    """Return the loss by its definition: the paper's eq. for logits, cross entropy and all."""
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    if kind == "logits":
        entropies = -(wanted.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        return entropies[mask].mean()
    if kind == "logits_mse":
        return (logits - wanted).square().sum(-1)[mask].mean()
    labels = batch["input_ids"].masked_fill(~mask, -100)
    labels[:, 1:][~mask[:, :-1]] = -100  # what follows padding is predicted from padding
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@families
@paddings
def test_the_head_makes_the_full_precision_networks_own_logits_of_its_last_outputs(family, padding):
    model, batch = network(family, torch.float64), tokens(padding)
    outputs, logits = passed(model, batch)
    found = LanguageAdapter(model, EXAMPLE, CPU).head()(batch, outputs)
    assert found.dtype == torch.float64
    assert torch.equal(found, logits)


@pytest.mark.parametrize("at_once", [5, 30, 1000], ids=lambda n: f"{n}_positions")
@pytest.mark.parametrize("kind", KINDS)
@families
def test_value_and_gradient_are_those_of_the_whole_network(kind, family, at_once, monkeypatch):
    for padding in PADDINGS:
        exact, student = pair(family)
        batch = tokens(padding)
        targets, wanted = passed(exact, batch)
        outputs, logits = passed(student, batch)
        loss = expected(kind, logits, wanted.detach(), batch)
        (gradient,) = torch.autograd.grad(loss, outputs)
        if kind == "logits":  # what no gradient sees: the entropy of the target
            loss = loss - expected(kind, wanted, wanted, batch)

        own = LanguageAdapter(student, EXAMPLE, CPU)
        monkeypatch.setattr(logit_loss, "PIECE", at_once * own.vocabulary())
        mask = own.loss_mask([batch])
        found = LogitLoss(kind, own, batch, mask)(outputs, targets.detach(), ALL)
        # transformers' RMSNorm computes in float32 whatever comes
        exactness = dict(rtol=1e-4, atol=1e-6) if family == "llama" else dict(rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(found, loss, **exactness)
        (own_gradient,) = torch.autograd.grad(3 * found, outputs)
        torch.testing.assert_close(own_gradient, 3 * gradient, **exactness)


def test_a_text_without_padding_has_transformers_own_loss_of_next_tokens():
    _, student = pair("llama")
    batch = tokens()
    outputs, _ = passed(student, batch)
    with torch.no_grad():
        loss = student(**batch, labels=batch["input_ids"]).loss
        own = LanguageAdapter(student, EXAMPLE, CPU)
        found = LogitLoss("next_token", own, batch, None)(outputs, outputs, ALL)
    # transformers takes the logits to float32 first
    assert found.item() == pytest.approx(loss.item(), rel=1e-6)


def test_no_gradient_no_graph():
    exact, student = pair("llama")
    outputs, _ = passed(student, tokens())
    with torch.no_grad():
        found = LogitLoss("logits", LanguageAdapter(student, EXAMPLE, CPU), tokens(), None)(
            outputs, passed(exact, tokens())[0], ALL
        )
    assert not found.requires_grad
    assert found > 0


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_head_that_caps_its_logits_is_followed(softcap):
    """Gemma 2 squashes its logits: a head taken for norm and matrix alone would miss that."""
    model = adapter_of("gemma2").model.double()
    model.config.final_logit_softcapping = softcap
    outputs, logits = passed(model, tokens())
    assert torch.equal(LanguageAdapter(model, EXAMPLE, CPU).head()(tokens(), outputs), logits)


@pytest.mark.parametrize("transform", ["awq", "hadamard"])
def test_behind_a_transform_the_head_is_the_changed_one(transform):
    """A rotation is folded into the head, and a head that was tied is one of its own then."""
    own = adapter_of("llama")
    found = apply(TRANSFORMS[transform], own, transformed_on(tokens()))
    assert found["name"] == transform
    with torch.no_grad():
        (outputs,) = own.last_outputs([tokens()])
        assert torch.equal(own.head()(tokens(), outputs), own.forward(tokens()))


def test_half_precision_is_widened_for_the_loss_and_stays_as_it_was():
    model = network("llama", torch.bfloat16)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    own = LanguageAdapter(model, EXAMPLE, CPU)
    with torch.no_grad():
        (outputs,) = own.last_outputs([tokens()])
        found = own.head()(tokens(), outputs.float())
        wide = LanguageAdapter(copy.deepcopy(model).float(), EXAMPLE, CPU)
        assert torch.equal(found, wide.logits_after(tokens(), outputs.float()))
    assert found.dtype == torch.float32
    assert all(torch.equal(state[n], v) and v.dtype == torch.bfloat16
               for n, v in model.state_dict().items())  # fmt: skip


def quantized(setting, method="flexround", padding=None, checkpoints=None, batches=None):
    """Return the quantized adapter, its integers, and the reports without their times."""
    own, keep = LanguageAdapter(network("llama"), EXAMPLE, CPU), Keep()
    integers = setting(
        own, batches or halves(tokens(padding)), quantizer=METHODS[method],
        grid=Grid(2, False, PerChannel()), ranges=MinMax(),
        generator=torch.Generator().manual_seed(0), callbacks=[keep], checkpoints=checkpoints,
    )  # fmt: skip
    return own, integers, [replace(r, seconds=0.0, peak_memory_gib=0.0) for r in keep.reports]


def same(one, other):
    return all(torch.equal(getattr(one, part), getattr(other, part))
               for part in ("codes", "scale", "zero_point"))  # fmt: skip


def divergence(model, batch):
    """Return the mean divergence of model from full precision over batch's own tokens."""
    with torch.no_grad():
        own = LanguageAdapter(model, EXAMPLE, CPU).forward(batch).double().log_softmax(-1)
        exact = LanguageAdapter(network("llama"), EXAMPLE, CPU).forward(batch).double()
    each = (exact.softmax(-1) * (exact.log_softmax(-1) - own)).sum(-1)
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    return each[mask].mean().item()


@pytest.mark.parametrize(
    ("method", "padding"),
    [("flexround", None), ("signround", "right"), ("flexround_lwc", "left"), ("lrq", None)],
)
def test_only_the_last_block_is_another_and_its_error_is_the_whole_networks(method, padding):
    _, before, blocks = quantized(replace(LOGITS, last_loss="block"), method, padding)
    own, after, others = quantized(LOGITS, method, padding)
    assert blocks[:-1] == others[:-1]
    last = others[-1].name
    changed = {name for name in before if not same(before[name], after[name])}
    assert changed
    assert all(name.startswith(f"{last}.") for name in changed)
    assert others[-1].error_after == pytest.approx(divergence(own.model, tokens(padding)), rel=1e-4)
    assert others[-1].error_after < others[-1].error_before


@pytest.mark.parametrize(
    "more", [{"keep_best": True}, {"patience": 2}], ids=lambda m: next(iter(m))
)
def test_samples_held_out_have_an_error_of_the_same_kind_and_teach_nothing(more):
    seen, held = halves(tokens())
    setting = replace(LOGITS, held_out=3, **more)
    own, integers, blocks = quantized(setting, batches=[seen, held])
    assert blocks[-1].held_out_after == pytest.approx(divergence(own.model, held), rel=1e-4)
    assert blocks[-1].error_after == pytest.approx(divergence(own.model, seen), rel=1e-4)
    if "patience" in more:
        lowest = min(error for _, error in blocks[-1].held_out_curve)
        assert blocks[-1].held_out_after == pytest.approx(lowest, rel=1e-5)
        return
    _, alone, _ = quantized(replace(setting, held_out=0), batches=[seen])
    assert all(same(integers[name], alone[name]) for name in alone)


@pytest.mark.parametrize("lives", [1, 2])
def test_killed_after_a_block_the_result_is_the_undisturbed_one(lives, tmp_path):
    setting = replace(LOGITS, keep_best=True)
    _, expected_, blocks = quantized(setting, "signround")
    with pytest.raises(Killed):
        quantized(setting, "signround", checkpoints=Dying(tmp_path, KEY, lives))
    _, found, others = quantized(setting, "signround", checkpoints=FileCheckpoints(tmp_path, KEY))
    assert all(same(expected_[name], found[name]) for name in expected_)
    assert blocks == others


def test_what_predicts_no_token_is_refused_by_its_name():
    bert = LanguageAdapter(network("bert"), EXAMPLE, CPU)
    for own, batches, name in (
        (bert, [tokens()], "BertForSequenceClassification"),
        (adapter(), calibration(), "Sequential"),
    ):
        with pytest.raises(ValueError, match=f"{name} predicts none; give recon.last_loss=block"):
            LOGITS.check(own, batches, Grid(3, False, PerChannel()), METHODS["flexround"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_loss_does_not_go_with_is_refused(kind):
    with pytest.raises(ValueError, match=f"unit=layer with recon.last_loss={kind}"):
        replace(LOGITS, unit="layer", last_loss=kind)
    setting = replace(LOGITS, last_loss=kind)
    with pytest.raises(ValueError, match=f"last_loss={kind}: what AdaRound adds to the loss"):
        setting.check_method(METHODS["adaround"], Grid(3, False, PerChannel()))
    setting.check_method(METHODS["flexround"], Grid(3, False, PerChannel()))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="last_loss=kl: give one of block, logits, logits_mse"):
        replace(LOGITS, last_loss="kl")
