"""Bits of each layer: patterns, the scores of a layer, and the dynamic programme."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.func import functional_call

from flexround.allocation import DeltaLoss, cheapest, delta_loss, next_token_loss
from flexround.grid import Grid, PerChannel, PerGroup
from flexround.models.language_adapter import LanguageAdapter
from flexround.ranges import MinMax
from flexround.structure import Layer, bits_by_name
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
