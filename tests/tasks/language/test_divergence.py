"""The divergence from full precision is Kullback and Leibler's, at every position of a text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flexround.calibration.activation_cache import ActivationCache
from flexround.models.language_adapter import LanguageAdapter
from results.records.store import Store
from tasks.language.divergence import POSITIONS, Divergence, kl_and_agreement
from tests.conftest import some_slow
from tests.tasks.language.test_perplexity import modeling, tiny_model

transformers = pytest.importorskip("transformers", reason="the extra language is not installed")


def test_a_case_by_hand():
    """Of p = (1/2, 1/4, 1/4) and q = (1/4, 1/2, 1/4): 1/2 log 2 - 1/4 log 2 = log(2) / 4."""
    full = torch.tensor([[0.5, 0.25, 0.25]]).log()
    own = torch.tensor([[0.25, 0.5, 0.25]]).log()
    kl, same = kl_and_agreement(full, own)
    assert kl.item() == pytest.approx(math.log(2) / 4, rel=1e-6)
    assert same.tolist() == [False]


def test_it_is_the_full_precision_networks_divergence_and_not_the_others():
    """KL is not symmetric: p = (1/2, 1/2), q = (1/4, 3/4) has log(2) - log(3) / 2 one way."""
    full, own = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl_and_agreement(full, own)[0].item() == pytest.approx(expected, rel=1e-6)
    reverse = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert kl_and_agreement(own, full)[0].item() == pytest.approx(reverse, rel=1e-6)


def test_it_does_not_see_a_constant_added_to_the_logits():
    full, own = torch.randn(2, 9, 50, generator=torch.Generator().manual_seed(0)).double()
    shift = torch.arange(9.0).double()[:, None] * 100
    kl, same = kl_and_agreement(full, own)
    moved, still = kl_and_agreement(full + shift, own - shift)
    assert torch.allclose(kl, moved, rtol=1e-10, atol=0)
    assert torch.equal(same, still)
    assert (kl > 0).all(), "Gibbs: none but that of equal ones is 0"
    assert not kl_and_agreement(full, full + shift)[0].gt(1e-13).any()


def test_small_divergences_keep_their_digits():
    """Logits moved by e d: KL is e^2 / 2 times the variance of d under p, for small e."""
    generator = torch.Generator().manual_seed(0)
    full, direction = 5 * torch.randn(2, 1000, generator=generator)
    p = full.double().softmax(-1)
    variance = (p * direction.double() ** 2).sum() - (p * direction.double()).sum() ** 2
    step = 2.0**-10
    own = full.double() + step * direction.double()
    kl = kl_and_agreement(full[None], own[None])[0].item()
    assert kl == pytest.approx(step**2 / 2 * variance.item(), rel=1e-2)


def test_a_token_without_probability_adds_nothing():
    full = torch.tensor([[0.0, 0.0, -math.inf]])
    kl, same = kl_and_agreement(full, full)
    assert (kl.item(), same.item()) == (0, True)


def test_every_position_counts_once_and_every_window_has_its_mean():
    generator = torch.Generator().manual_seed(0)
    windows = torch.randn(3, 2, POSITIONS + 5, 7, generator=generator)
    found = Divergence()
    for full, own in windows:
        found.add(full, own)
    # Position by position, by the definition.
    rows = np.array(
        [[sum(a.exp() * (a - b)) for a, b in zip(*w.double().log_softmax(-1), strict=True)]
         for w in windows]
    )  # fmt: skip
    same = np.array([(w[0].argmax(-1) == w[1].argmax(-1)).numpy() for w in windows])
    values = found.metrics()
    assert values["kl"] == pytest.approx(rows.mean())
    assert values["kl_median"] == pytest.approx(np.percentile(rows, 50))
    assert values["kl_p99"] == pytest.approx(np.percentile(rows, 99))
    assert values["agreement"] == pytest.approx(100 * same.mean())
    assert found.outcomes()["kl"].tolist() == pytest.approx(rows.mean(1).tolist())
    assert found.outcomes()["agreement"].tolist() == pytest.approx((100 * same.mean(1)).tolist())


def compared(cache_dir, family, **changes):
    """Return a task that has its reference, and the adapter of the network that it is of."""
    task = modeling(cache_dir, divergence=True, **changes)
    adapter = LanguageAdapter(
        task.load(tiny_model(family), None), task.example(), torch.device("cpu")
    )
    task.reference = ActivationCache().store(task.compared(adapter))
    return task, adapter


def test_full_precision_is_measured_by_its_reference_without_another_pass(cache_dir):
    task, adapter = compared(cache_dir, "llama")
    by_reference, kept = task.evaluate_reference(adapter), task.outcomes
    task.reference = None
    assert by_reference == task.evaluate(adapter), "bit for bit, and compared with nothing"
    assert torch.equal(kept["perplexity"], task.outcomes["perplexity"])


@pytest.mark.parametrize("family", some_slow(["llama", "gpt2", "gpt_neo", "opt"], ["gpt_neo"]))
def test_a_network_agrees_with_itself(cache_dir, family):
    task, adapter = compared(cache_dir, family, eval_batch_size=1)
    found = task.evaluate(adapter)
    assert [found[n] for n in ("kl", "kl_median", "kl_p99", "agreement")] == [0, 0, 0, 100]
    assert set(task.outcomes) == {"perplexity", "kl", "agreement"}
    # In batches sums have another order, and KL is the square of what that makes of a logit.
    task, adapter = compared(cache_dir, family)
    assert 0 <= task.evaluate(adapter)["kl"] < 1e-10


def test_the_reference_is_full_precision_whatever_has_become_of_the_blocks(cache_dir):
    task, adapter = compared(cache_dir, "llama")
    network, (windows,) = adapter.model, task.texts()
    with torch.no_grad():
        before = network(input_ids=windows).logits[:, :-1]
        perplexity = task.evaluate(adapter)["perplexity"]
        for layer in adapter.layers().values():
            layer.module.weight.mul_(0.9)
        after = network(input_ids=windows).logits[:, :-1]
    p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1)
    found = task.evaluate(adapter)
    assert found["perplexity"] != perplexity
    assert found["kl"] == pytest.approx(expected.mean().item(), rel=1e-4)
    assert task.outcomes["kl"].tolist() == pytest.approx(expected.mean(1).tolist(), rel=1e-4)
    agreement = (before.argmax(-1) == after.argmax(-1)).double().mean().item()
    assert found["agreement"] == pytest.approx(100 * agreement)


def test_nothing_is_compared_where_it_is_off(cache_dir):
    task = modeling(cache_dir)
    adapter = LanguageAdapter(task.load(tiny_model(), None), task.example(), torch.device("cpu"))
    assert task.compared(adapter) is None
    assert set(task.evaluate(adapter)) == set(task.outcomes) == {"perplexity"}


SHORT = ("model=tiny_llama", "task=python_docs", "quant=rtn", "num_samples=8", "task.seq_len=32")
SHORT += ("protocol.window=32", "protocol.max_windows=5", "bits=3", "symmetric=false")
KEPT = {"kl", "kl_median", "kl_p99", "agreement"}


def test_a_run_records_it_off_or_on_under_one_name(cli, results_dir):
    assert cli(*SHORT, "task.divergence=false").status == 0
    (plain,) = Store(results_dir).load()
    assert set(plain.metrics) == {"perplexity"}
    assert cli(*SHORT, "rerun=true").status == 0
    (record,) = Store(results_dir).load()
    assert (record.run_id, record.value) == (plain.run_id, plain.value)
    assert record.fp_metrics == plain.fp_metrics
    assert set(record.metrics) == {"perplexity"} | KEPT
    assert record.metrics["kl"] > 0
    kept = Store(results_dir).outcomes(record)
    assert kept["kl"].shape == (5,)
    assert kept["kl"].mean() == pytest.approx(record.metrics["kl"], rel=1e-5)


def test_a_network_read_block_by_block_diverges_as_the_whole_one(cli, results_dir):
    assert cli(*SHORT).status == 0
    (whole,) = Store(results_dir).load()
    assert cli(*SHORT, "rerun=true", "offload=true", "cache_gib=0").status == 0
    (one_by_one,) = Store(results_dir).load()
    for name in KEPT:
        assert one_by_one.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-6)


def test_it_is_refused_where_it_does_nothing(cli):
    outcome = cli("model=tiny_bert", "task=python_topics", "task.divergence=false", "quant=rtn")
    assert outcome.status == 1
    assert "divergence" in outcome.err.splitlines()[-1]
