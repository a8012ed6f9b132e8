"""Bits of each layer: patterns, the scores of a layer, and the dynamic programme."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.func import functional_call

from flexround.allocation import DeltaLoss, cheapest, delta_loss, next_token_loss
from flexround.grid import Grid, PerChannel, PerGroup
from flexround.missing_scores import completed
from flexround.models.language_adapter import LanguageAdapter
from flexround.ranges import MinMax
from flexround.structure import Layer, bits_by_name
from tests.flexround.models.test_families import MIXTURES, adapter_of
from tests.flexround.models.test_language import EXAMPLE, network, tokens

pytest.importorskip("transformers", reason="the extra language is not installed")
CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_within_the_budget_has_a_smaller_sum(seed):
    draws = torch.Generator().manual_seed(seed)
    sizes = {f"l{i}": int(torch.randint(1, 9, (), generator=draws)) for i in range(5)}
    options = [2, 3, 4, 8]
    scores = {n: {b: torch.rand((), generator=draws).item() / b for b in options} for n in sizes}
    average = 2 + 6 * torch.rand((), generator=draws).item()
    found = cheapest(scores, sizes, average)
    total = sum(sizes.values())

    def spent(bits):
        return sum(sizes[n] * b for n, b in zip(sizes, bits, strict=True))

    def loss(bits):
        return sum(scores[n][b] for n, b in zip(sizes, bits, strict=True))

    best = min(loss(b) for b in product(options, repeat=5) if spent(b) <= average * total)
    chosen = [found[n] for n in sizes]
    assert spent(chosen) <= average * total
    assert loss(chosen) == pytest.approx(best)


def test_a_budget_is_what_is_written():
    """4.35 bits of 100 weights are 435, and 434.99999999999994 in floating point."""
    scores = {"a": {4: 1.0, 5: 0.0}, "b": {4: 0.5, 5: 0.0}}
    assert cheapest(scores, {"a": 35, "b": 65}, 4.35) == {"a": 5, "b": 4}


def test_padding_is_no_token_and_nothing_is_predicted_from_it():
    logits = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0, 0, 3, 4, 5], [1, 2, 3, 0, 0]])
    held = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    each = [-logits[row, at].log_softmax(-1)[ids[row, at + 1]] for row, at in
            [(0, 2), (0, 3), (1, 0), (1, 1)]]  # fmt: skip
    batch = {"input_ids": ids, "attention_mask": held}
    torch.testing.assert_close(next_token_loss(logits, batch), torch.stack(each).mean())
    alone = {"input_ids": ids[:1], "attention_mask": torch.tensor([[0, 0, 0, 0, 1]])}
    assert next_token_loss(logits[:1], alone) == 0


def test_a_budget_of_the_fewest_bits_and_one_of_the_most():
    scores = {n: {2: 1.0, 4: 0.5, 8: 0.1} for n in "abc"}
    sizes = {"a": 7, "b": 11, "c": 13}
    assert cheapest(scores, sizes, 2.0) == dict.fromkeys("abc", 2)
    assert cheapest(scores, sizes, 8.0) == dict.fromkeys("abc", 8)


def test_a_large_network_stays_within_its_budget():
    sizes = {f"l{i}": 1_000_003 + 7919 * i for i in range(300)}
    scores = {n: {2: float(i % 17 + 1), 4: 0.3, 8: 0.0} for i, n in enumerate(sizes)}
    found = cheapest(scores, sizes, 3.3)
    mean = sum(sizes[n] * b for n, b in found.items()) / sum(sizes.values())
    assert 3.29 < mean <= 3.3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_score_is_the_gradient_times_the_rounding_error(family):
    adapter = LanguageAdapter(network(family), EXAMPLE, CPU)
    before = {n: t.clone() for n, t in adapter.model.state_dict().items()}
    grid, batches = Grid(3, False, PerChannel()), [tokens(), tokens()]
    found = delta_loss(adapter, batches, 2, grid, MinMax())
    after = adapter.model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before), "the network is as it was"
    assert not any(p.requires_grad for p in adapter.model.parameters())
    exact, rounded = {}, {}
    for name, layer in adapter.layers().items():
        weight = layer.module.weight.detach()
        rows = weight.T if family == "gpt2" else weight
        low, high = rows.amin(1, True).clamp(max=0), rows.amax(1, True).clamp(min=0)
        scale = (high - low) / 7
        zero = torch.round(-low / scale)
        near = (torch.clamp(torch.round(rows / scale) + zero, 0, 7) - zero) * scale
        exact[f"{name}.weight"] = weight
        rounded[f"{name}.weight"] = (near.T if family == "gpt2" else near).clone()
    expected = dict.fromkeys(exact, 0.0)
    for batch in batches:
        for rows in torch.arange(len(batch["input_ids"])).split(2):
            own = {n: p.detach().requires_grad_() for n, p in rounded.items()}
            ids = batch["input_ids"][rows]
            out = functional_call(adapter.model, own, kwargs={"input_ids": ids})
            log = out.logits.log_softmax(-1)[:, :-1]
            loss = -log.gather(2, ids[:, 1:, None]).mean()
            for n, g in zip(own, torch.autograd.grad(loss, list(own.values())), strict=True):
                expected[n] += (g * (exact[n] - rounded[n])).abs().sum().item()
    for name, score in found.items():
        assert score == pytest.approx(expected[f"{name}.weight"], rel=1e-4)
        assert score > 0


@pytest.mark.parametrize("samples", [2, 64])  # by whose number of tokens the gradient is divided
def test_a_networks_type_does_not_change_its_scores(samples):
    """At 8 bits a gradient times a rounding error is less than float16 holds."""
    draws = torch.Generator().manual_seed(1)
    batch = {"input_ids": torch.randint(5, 1000, (samples, 128), generator=draws)}
    scores = []
    for dtype in (torch.float16, torch.float32):
        model = network("llama", torch.float16).to(dtype)
        adapter = LanguageAdapter(model, EXAMPLE, CPU)
        scores.append(delta_loss(adapter, [batch], samples, Grid(8, False, PerChannel()), MinMax()))
    for name, score in scores[0].items():
        assert score == pytest.approx(scores[1][name], rel=0.02), name


def sent_to(adapter):
    """Have adapter note, by the name of each expert's layer, the tokens that a pass sends there."""
    seen = {}
    for name, layer in adapter.layers().items():
        if layer.expert is not None:

            def look(_, __, name=name, expert=layer.expert):
                seen.setdefault(name, set()).update(expert.tokens.tolist())

            layer.module.register_forward_pre_hook(look)
    return seen


@pytest.mark.parametrize("padding", [None, "right"])
@pytest.mark.parametrize("family", MIXTURES)
def test_experts_that_no_token_is_sent_to_have_no_score(family, padding):
    """The last token predicts nothing, and none before it sees it; nor does any see padding."""
    adapter, length = adapter_of(family), 4
    batch = {"input_ids": torch.tensor([[7, 300, 41, 900]])}
    if padding:
        batch["attention_mask"], length = torch.tensor([[1, 1, 1, 0]]), 3
    seen = sent_to(adapter)
    found = delta_loss(adapter, [batch], 1, Grid(3, False, PerChannel()), MinMax())
    layers = adapter.layers()
    counted = {name for name, at in seen.items() if min(at) < length - 1}
    experts = {name for name, layer in layers.items() if layer.expert is not None}
    assert found.keys() == counted | (layers.keys() - experts)
    assert experts - counted
    assert all(score > 0 for score in found.values())


def test_a_layer_whose_weight_moves_nothing_has_a_score_of_zero():
    """That is measured: the loss feels nothing of it. No bits are put in for such a one."""
    adapter = LanguageAdapter(network("llama"), EXAMPLE, CPU)
    adapter.model.model.layers[0].self_attn.o_proj.weight.data.zero_()
    found = delta_loss(adapter, [tokens()], 2, Grid(3, False, PerChannel()), MinMax())
    assert found.keys() == adapter.layers().keys()
    assert found["model.layers.0.self_attn.v_proj"] == 0


def test_an_expert_that_no_token_reaches_is_not_given_the_fewest_bits_for_that(caplog):
    adapter = adapter_of("olmoe")
    batch = {"input_ids": torch.tensor([[7, 300, 41, 900]])}
    allocation = DeltaLoss(7.5, [2, 8])
    chosen, told = allocation(adapter, [batch], 1, Grid(4, False, PerChannel()), MinMax())
    missing = [name for name, own in told.items() if len(own) < 2]
    assert missing
    for name in missing:
        assert set(told[name]) < {"2", "8"}, "the record holds what was measured alone"
    assert any(chosen[name] == 8 for name in missing), "a score of 0 would have given 2 to all"
    (record,) = [r for r in caplog.records if "allocation=delta_loss" in r.getMessage()]
    assert f"{len(missing)} of {len(chosen)} layers" in record.getMessage()
    assert missing[0] in record.getMessage()


OPTIONS = [2, 4]
SCORES = {
    "h.0.experts.0.up": {2: 6.0, 4: 2.0},
    "h.0.experts.1.up": {2: 18.0, 4: 4.0},  # together 24 and 6 of 30 weights: 0.8 and 0.2 each
    "h.1.experts.0.up": {4: 0.5},  # of its own 0.5, four times as much at 2 bits
    "h.1.experts.1.up": {2: 8.0},
    "h.1.experts.7.up": {},
    "h.0.q": {2: 70.0, 4: 40.0},  # with it, 94 and 46 of 50 weights
    "h.0.odd.down": {},
}
SIZES = dict.fromkeys(SCORES, 10) | {"h.0.experts.1.up": 20, "h.0.q": 20, "h.0.odd.down": 5}


def test_missing_scores_are_those_of_the_layers_called_alike_for_each_weight(caplog):
    found = completed(SCORES, SIZES, OPTIONS)
    assert found["h.1.experts.0.up"] == pytest.approx({2: 2.0, 4: 0.5})
    assert found["h.1.experts.1.up"] == pytest.approx({2: 8.0, 4: 2.0})
    assert found["h.1.experts.7.up"] == pytest.approx({2: 8.0, 4: 2.0})
    assert found["h.0.odd.down"] == pytest.approx({2: 9.4, 4: 4.6})
    assert list(found) == list(SCORES)
    whole = [name for name, own in SCORES.items() if len(own) == 2]
    assert all(found[name] == SCORES[name] for name in whole)
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "4 of 7 layers" in message
    assert "h.1.experts.0.up, h.1.experts.1.up, h.1.experts.7.up, ..." in message


def test_scores_that_are_all_measured_stay_and_nothing_is_said(caplog):
    scores = {name: SCORES[name] for name in ("h.0.q", "h.0.experts.0.up")}
    assert completed(scores, SIZES, OPTIONS) == scores
    assert not caplog.records


def test_where_no_layer_is_reached_at_all_options_there_is_nothing_to_put_in():
    with pytest.raises(ValueError, match=r"\A[^\n]*options=\[2, 4\]; give more of them"):
        completed({"a": {2: 1.0}, "b": {4: 1.0}}, {"a": 1, "b": 1}, OPTIONS)


def test_a_mean_of_zero_gives_no_ratio():
    scores = {"e.0": {2: 3.0, 4: 0.0}, "e.1": {4: 1.0}}
    found = completed(scores, {"e.0": 6, "e.1": 2}, OPTIONS)
    assert found["e.1"] == {2: 1.0, 4: 1.0}


def test_the_last_pattern_that_fits_counts_and_one_that_fits_nothing_is_refused():
    names = ["a.0.q", "a.0.down", "a.1.q", "a.1.down"]
    assert bits_by_name(names, {"a.0.*": 3, "*.down": 8}) == {
        "a.0.q": 3, "a.0.down": 8, "a.1.down": 8
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"\*\.dwn is none of the 4 layers .* a\.\d\.down"):
        bits_by_name(names, {"*.dwn": 8})


def test_bits_that_are_chosen_keep_the_groups_and_go_before_a_layers_own():
    grid = Grid(4, False, PerGroup(16))
    module = torch.nn.Linear(32, 8)
    assert Layer("l", module, chosen=2).grid(grid) == Grid(2, False, PerGroup(16))
    assert Layer("l", module, bits=8, chosen=3).grid(grid) == Grid(3, False, PerChannel())


@pytest.mark.parametrize(
    ("average", "options", "told"),
    [(1.9, [2, 4], "give 2 to 4"), (8.1, [2, 8], "give 2 to 8"), (3, [3], "two different"),
     (3, [1, 4], "2 to 8 each"), (float("nan"), [2, 4], "give 2 to 4")],
)  # fmt: skip
def test_budgets_and_options_that_are_refused(average, options, told):
    with pytest.raises(ValueError, match=told):
        DeltaLoss(average, options)
