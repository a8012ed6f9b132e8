"""Networks whose outputs are no numbers, or too large for a perplexity, fail with the reason."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from flexround.models.language_adapter import LanguageAdapter
from results.records.store import Store
from tasks.finite import perplexity_of
from tasks.language import pretrained
from tests.tasks.language import test_perplexity, test_squad, test_webnlg
from tests.tasks.language.test_classification import TINY_BERT, glue, sentiment

transformers = pytest.importorskip("transformers", reason="the extra language is not installed")

NAN = "the network's outputs are nan"


def test_a_perplexity_is_exp_of_the_mean_up_to_what_a_float_holds():
    assert perplexity_of(math.log(20.0)) == pytest.approx(20.0)
    assert perplexity_of(709.0) == pytest.approx(8.2184e307, rel=1e-4)
    for mean in (710.0, 1e6, math.inf):
        with pytest.raises(ValueError, match=r"is (710|1e\+06|inf) nats a token"):
            perplexity_of(mean)
    with pytest.raises(ValueError, match="negative log-likelihood is nan"):
        perplexity_of(math.nan)


def spoilt(parameter, value):
    with torch.no_grad():
        parameter[0] = value if math.isnan(value) else parameter[0] * value


@pytest.mark.parametrize(("factor", "reason"), [(1e6, "nats a token"), (math.nan, "is nan")])
def test_a_run_beyond_floats_is_a_failed_record_of_one_line(
    cli, results_dir, cache_dir, tmp_path, factor, reason
):
    task = test_perplexity.modeling(cache_dir)
    network = task.load(test_perplexity.tiny_model(), None)
    spoilt(network.lm_head.weight, factor)
    pretrained.save(network, task.tokenizer, tmp_path / "net")
    outcome = cli("model=tiny_llama", f"checkpoint={tmp_path}/net", "quant=rtn", "num_samples=8",
                  "task.seq_len=32")  # fmt: skip
    assert outcome.status == 1
    last = outcome.err.splitlines()[-1]
    assert last.startswith("error: the mean negative log-likelihood is ")
    assert reason in last
    assert "Traceback" not in outcome.err
    (record,) = Store(results_dir).load()
    assert record.status == "failed"
    assert reason in record.error


def test_a_classifiers_nan_is_no_answer(tmp_path, cache_dir):
    task = glue("sst2", sentiment(tmp_path), cache_dir)
    network = task.fresh(TINY_BERT, None, 0)
    spoilt(network.classifier.weight, math.nan)
    with pytest.raises(ValueError, match=NAN):
        task.evaluate(LanguageAdapter(network, task.example(), torch.device("cpu")))


def test_nan_is_no_span_of_an_answer(tmp_path, cache_dir):
    test_squad.write(tmp_path, test_squad.ITEMS, "dev")
    task = test_squad.squad(cache_dir, tmp_path)
    network = task.fresh(test_squad.BERT, None, 0)
    spoilt(network.qa_outputs.weight, math.nan)
    with pytest.raises(ValueError, match=NAN):
        task.evaluate(LanguageAdapter(network, task.example(), torch.device("cpu")))


def test_nan_makes_no_sentence(tmp_path, cache_dir):
    task = test_webnlg.webnlg(cache_dir, tmp_path)
    network, task._tokenizer = task.open("tiny:gpt2")
    spoilt(network.lm_head.weight, math.nan)
    adapter = LanguageAdapter(network, task.example(), torch.device("cpu"))
    with pytest.raises(ValueError, match=NAN):
        task._generate(adapter, [[5, 6, 7]])


def test_nan_is_no_choice_of_the_harness(tmp_path, cache_dir):
    pytest.importorskip("lm_eval", reason="the extra zero-shot is not installed")
    from tasks.language.harness_scores import likelihoods
    from tests.tasks.language.test_zero_shot import folder, loaded

    tasks = folder.__wrapped__(tmp_path)
    task, adapter = loaded(tasks, cache_dir, limit=2)
    spoilt(adapter.model.lm_head.weight, math.nan)
    with pytest.raises(ValueError, match=NAN):
        task.evaluate(adapter)
    logged = [{"filtered_resps": [(-1.5, False), (-2.0, True)]}, {"filtered_resps": ["text"]}]
    assert likelihoods(logged).tolist() == [-1.5, -2.0]


def test_nan_is_no_class_of_an_image():
    from tasks.vision.base import VisionTask

    class Two(VisionTask):
        load = example = test_batches = calibration = write_architecture = bare = None
        num_classes = 2

    Two.__abstractmethods__ = frozenset()
    task = Two()
    task.test_batches = lambda: [(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.long))]
    answers = torch.tensor([[1.0, 0.0], [math.nan, 0.0]])
    with pytest.raises(ValueError, match=NAN):
        task.evaluate(SimpleNamespace(forward=lambda _: answers))
