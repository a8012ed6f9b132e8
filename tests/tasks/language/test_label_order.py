"""Classes in another order than the data's, and networks that are worse than guesses."""

from __future__ import annotations

import json

import pytest
import torch

from flexround.models.language_adapter import LanguageAdapter
from results.records.store import Store
from tasks.language.chance import check_classes, check_scores
from tasks.language.label_names import class_order
from tests.tasks.language.test_classification import TINY_BERT, glue

transformers = pytest.importorskip("transformers", reason="the extra language is not installed")

MNLI = ["entailment", "neutral", "contradiction"]

# As checkpoints on the hub call their classes (textattack, roberta-large-mnli, typeform, ...).
NAMES = [
    (["CONTRADICTION", "ENTAILMENT", "NEUTRAL"], MNLI, [2, 0, 1]),
    (["contradiction", "neutral", "entailment"], MNLI, [2, 1, 0]),
    (["Entailment", "Neutral", "Contradiction"], MNLI, [0, 1, 2]),
    (["LABEL_0", "LABEL_1", "LABEL_2"], MNLI, [0, 1, 2]),
    (["2", "0", "1"], MNLI, [2, 0, 1]),
    (["1", "2", "3"], MNLI, None),
    (["not_entailment", "entailment"], ["entailment", "not_entailment"], [1, 0]),
    (["Non-Entailment", "ENTAIL"], ["entailment", "not_entailment"], [1, 0]),
    (["POSITIVE", "NEGATIVE"], ["negative", "positive"], [1, 0]),
    (["acceptable", "unacceptable"], ["unacceptable", "acceptable"], [1, 0]),
    (["ungrammatical", "grammatical"], ["unacceptable", "acceptable"], [0, 1]),
    (["is_duplicate", "not duplicate"], ["not_duplicate", "duplicate"], [1, 0]),
    (["not_paraphrase", "paraphrase"], ["not_equivalent", "equivalent"], [0, 1]),
]


@pytest.mark.parametrize(("own", "names", "order"), NAMES, ids=["-".join(n[0]) for n in NAMES])
def test_a_heads_names_say_the_order(own, names, order):
    assert class_order(own, names) == order


@pytest.mark.parametrize(
    "own", [["sports", "politics", "weather"], ["entailment", "neutral", "neutral"],
            ["entailment", "neutral", "LABEL_2"]],
)  # fmt: skip
def test_words_that_are_not_the_tasks_are_refused(own):
    with pytest.raises(ValueError, match=f"calls its classes {own[0]}, .*, not entailment, neut"):
        class_order(own, MNLI)


@pytest.fixture
def oracle(tmp_path, cache_dir):
    """Return (task, network) on an MNLI whose truth is what the network says."""
    words = ["the", "cat", "dog", "sat", "on", "a", "mat", "list", "value", "type", "code"]
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(words), (120, 8), generator=generator).tolist()
    texts = [(" ".join(words[i] for i in r[:4]), " ".join(words[i] for i in r[4:])) for r in draws]

    def write(labels):
        lines = ["sentence1\tsentence2\tgold_label"]
        lines += [f"{a}\t{b}\t{MNLI[label]}" for (a, b), label in zip(texts, labels, strict=True)]
        for name in ("train", "dev_matched", "dev_mismatched"):
            (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")

    task = glue("mnli", tmp_path, cache_dir)
    network = task.fresh(TINY_BERT, None, 0)
    write([0] * len(texts))
    logits = task._logits(adapter(task, network), task._encode(task._data.examples("train")))
    with torch.no_grad():  # else one class would be said of nearly all texts
        network.classifier.weight /= logits.std(0).mean()
        network.classifier.bias.copy_(-logits.mean(0) / logits.std(0).mean())
    logits = task._logits(adapter(task, network), task._encode(task._data.examples("train")))
    said = logits.argmax(1)
    assert min(torch.bincount(said, minlength=3)) > 15
    write(said.tolist())
    return task, network


def adapter(task, network):
    return LanguageAdapter(network, task.example(), torch.device("cpu"))


def reordered(task, network, folder, order, names):
    """Write network with its classes in another order, under these names, as a checkpoint."""
    other = transformers.AutoModelForSequenceClassification.from_config(network.config)
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        for parameter in other.classifier.parameters():
            parameter.copy_(parameter[order].clone())
    other.config.id2label = dict(enumerate(names))
    other.config.label2id = {name: place for place, name in enumerate(names)}
    other.save_pretrained(folder)
    task.tokenizer.save_pretrained(folder)
    return str(folder)


def evaluated(task, source):
    metrics = task.evaluate(adapter(task, task.load(TINY_BERT, source)))
    task.check_full_precision(metrics)
    return metrics


@pytest.mark.parametrize(
    ("order", "names"),
    [([2, 0, 1], ["CONTRADICTION", "ENTAILMENT", "NEUTRAL"]),
     ([1, 2, 0], ["neutral", "contradiction", "entailment"]),
     ([0, 1, 2], ["LABEL_0", "LABEL_1", "LABEL_2"])],
)  # fmt: skip
def test_every_order_that_id2label_names_has_the_same_accuracy(oracle, tmp_path, order, names):
    task, network = oracle
    source = reordered(task, network, tmp_path / "other", order, names)
    assert evaluated(task, source) == {"accuracy": 100.0, "accuracy_mm": 100.0}
    assert task.outcomes["accuracy"].all()
    # So has what an artifact rebuilds from.
    task.write_architecture(task.load(TINY_BERT, source), tmp_path / "bare")
    bare = task.bare(TINY_BERT, None, tmp_path / "bare")
    bare.load_state_dict(task.load(TINY_BERT, source).state_dict())
    assert task.evaluate(adapter(task, bare))["accuracy"] == 100.0


def test_an_order_that_nothing_names_is_refused_with_the_order(oracle, tmp_path):
    task, network = oracle
    plain = [f"LABEL_{place}" for place in range(3)]
    source = reordered(task, network, tmp_path / "other", [2, 0, 1], plain)
    with pytest.raises(ValueError, match="contradiction, entailment, neutral in this order \\(100"):
        evaluated(task, source)
    # id2label that is wrong is corrected from the head's own outputs, too.
    source = reordered(task, network, tmp_path / "wrong", [2, 0, 1], [MNLI[2], MNLI[1], MNLI[0]])
    with pytest.raises(ValueError, match="contradiction, entailment, neutral in this order \\(100"):
        evaluated(task, source)


def test_a_run_refuses_it_again_and_takes_the_corrected_names(cli, results_dir, oracle, tmp_path):
    task, network = oracle
    plain = [f"LABEL_{place}" for place in range(3)]
    source = reordered(task, network, tmp_path / "other", [2, 0, 1], plain)
    args = ["model=tiny_bert", "task=glue/mnli", f"data_dir={tmp_path}", f"checkpoint={source}",
            "quant=rtn", "bits=8", "num_samples=8"]  # fmt: skip
    for again in ([], ["retry_failed=true"]):
        refused = cli(*args, *again)
        assert refused.status == 1
        assert "which id2label in its config.json has to say" in refused.err.splitlines()[-1]
    file = tmp_path / "other" / "config.json"
    config = json.loads(file.read_text())
    config["id2label"] = dict(enumerate([MNLI[2], MNLI[0], MNLI[1]]))
    file.write_text(json.dumps(config))
    assert cli(*args).status == 0
    (record,) = (record for record in Store(results_dir).load() if record.status == "ok")
    assert record.fp_value == 100.0


def test_other_words_are_refused_with_the_way_out(oracle, tmp_path):
    task, network = oracle
    source = reordered(task, network, tmp_path / "other", [2, 0, 1], ["no", "yes", "maybe"])
    with pytest.raises(ValueError, match=r"calls its classes no, yes, maybe, not entail.*names=\["):
        task.load(TINY_BERT, source)


def test_a_fine_tuned_head_carries_the_tasks_names(oracle, cache_dir, tmp_path):
    task, network = oracle
    assert list(network.config.id2label.values()) == MNLI
    assert network.config.label2id == {name: place for place, name in enumerate(MNLI)}
    # Also where the checkpoint to start from has its own.
    source = reordered(task, network, tmp_path / "other", [2, 0, 1], [MNLI[i] for i in (2, 0, 1)])
    assert list(task.fresh(TINY_BERT, source, 0).config.id2label.values()) == MNLI
    names = {"cola": "unacceptable", "sst2": "negative", "mrpc": "not_equivalent",
             "qqp": "not_duplicate", "qnli": "entailment", "rte": "entailment"}  # fmt: skip
    for subset, name in names.items():  # the first class of the hub's nyu-mll/glue
        assert (
            glue(subset, tmp_path, cache_dir).fresh(TINY_BERT, None, 0).config.id2label[0] == name
        )
    assert glue("stsb", tmp_path, cache_dir).fresh(TINY_BERT, None, 0).config.num_labels == 1


def classes(seed, samples, shares):
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(torch.tensor(shares), samples, replacement=True, generator=generator)


def scores(seed, samples):
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("samples", [20, 200, 5000])
@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.3, 0.7], [0.1, 0.1, 0.8]])
def test_guesses_of_any_frequencies_are_not_refused(samples, shares):
    # Luck looks like a fault with a probability of 1e-4. All of these are 180 draws for a check:
    # without seeds one of them would be refused in every 55th run of the tests.
    names, order = list("abc")[: len(shares)], torch.arange(len(shares))
    for seed in range(20):
        truth = classes(seed, samples, shares)
        check_classes(classes(seed + 100, samples, shares[::-1]), truth, names, order)
        check_scores(scores(seed + 200, samples), truth.double())


def test_fewer_right_than_guesses_are_refused():
    truth = classes(0, 200, [0.5, 0.5])
    wrong = torch.where(classes(1, 200, [0.7, 0.3]).bool(), truth, 1 - truth)
    with pytest.raises(ValueError, match=r"guesses have .*its classes seem to be b, a"):
        check_classes(wrong, truth, ["a", "b"], torch.arange(2))
    with pytest.raises(ValueError, match="falls where the data's rises"):
        check_scores(-truth.double() + scores(2, 200), truth.double())
    right = 1 - wrong
    check_classes(right, truth, ["a", "b"], torch.arange(2))
    check_scores(truth.double() + scores(3, 200), truth.double())


def test_a_good_network_with_two_classes_confused_is_not_refused():
    truth = classes(0, 600, [0.4, 0.3, 0.3])
    confused = truth.clone()
    confused[(truth > 0) & (classes(1, 600, [0.4, 0.6]) > 0)] += 1
    confused[confused == 3] = 1
    assert (confused == truth).double().mean() > 0.6
    check_classes(confused, truth, list("abc"), torch.arange(3))
