"""GLUE's files and metrics, the head, padding, and the embedded classification."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hydra import compose, initialize_config_module

import run  # noqa: F401  registers the schema
from experiment.build import build
from flexround.models.language import LanguageModel
from flexround.models.language_adapter import LanguageAdapter
from results.records.store import Store
from tasks.language.classification import METRICS
from tasks.language.glue_data import Example, PythonTopics
from tasks.language.heads import kind_of

transformers = pytest.importorskip("transformers", reason="the extra language is not installed")

TINY_BERT = LanguageModel("tiny_bert", "tiny:bert", "encoder", [])


def glue(subset, data_dir, cache_dir, *overrides):
    options = [f"task=glue/{subset}", f"data_dir={data_dir}", f"cache_dir={cache_dir}", *overrides]
    options.append(f"checkpoints_dir={cache_dir}/finetuned")
    with initialize_config_module("conf", version_base="1.3"):
        return build(compose("config", ["model=tiny_bert", *options]).task)


# The first lines of each subset's files in the layout that GLUE publishes, header and all.
HEADERS = {
    "mnli": (
        "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label",
        [("0\t1\tA b\tC d\tneutral\tcontradiction", ("A b", "C d"), 2)],
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        [("0\t1\t2\tWho ?\tWhat ?\t1", ("Who ?", "What ?"), 1)],
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel",
        [("0\tWho ?\tHe .\tnot_entailment", ("Who ?", "He ."), 1)],
    ),
    "sst2": ("sentence\tlabel", [("so good \t1", ("so good ",), 1)]),
    "cola": (None, [("gj04\t0\t*\tThe dog bark.", ("The dog bark.",), 0)]),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        [("0\tg\tf\ty\t1\ts\ts\tA b\tC d\t3.75", ("A b", "C d"), 3.75)],
    ),
    "mrpc": (
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        [('1\t7\t8\tHe said "so.\tShe did.', ('He said "so.', "She did."), 1)],
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel",
        [("0\tA b\tC d\tentailment", ("A b", "C d"), 0)],
    ),
}


@pytest.mark.parametrize("subset", HEADERS)
def test_every_subset_reads_its_published_layout(tmp_path, cache_dir, subset):
    header, lines = HEADERS[subset]
    text = "\n".join([*([header] if header else []), *(line for line, _, _ in lines), ""])
    task = glue(subset, tmp_path, cache_dir)
    data = task._data
    (tmp_path / data.folder).mkdir()
    for name in ("train.tsv", "dev.tsv", "dev_matched.tsv", "dev_mismatched.tsv"):
        (tmp_path / data.folder / name).write_text(text)
    for split in ("train", *task._splits.values()):
        assert data.examples(split) == [Example(texts, label) for _, texts, label in lines]
    classes = len(data.classes) if data.classes else 1
    assert classes == task._num_labels


def test_glue_files_that_are_not_there_or_not_glues_are_named(tmp_path, cache_dir):
    data = glue("sst2", tmp_path, cache_dir)._data
    with pytest.raises(ValueError, match=r"neither it nor SST-2 in it has dev.tsv"):
        data.examples("validation")
    (tmp_path / "dev.tsv").write_text("text\tlabel\n")
    with pytest.raises(ValueError, match=r"no column sentence in its header \(text, label\)"):
        data.examples("validation")
    (tmp_path / "dev.tsv").write_text("\ufeffsentence\tlabel\ngood\t1\nbroken\n")
    assert data.examples("validation") == [Example(("good",), 1)], "as QQP and MRPC are published"
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t7\n")
    with pytest.raises(ValueError, match=r"dev.tsv, line 3: '7' is no label of sst2"):
        data.examples("validation")


def test_metrics_by_their_definitions():
    truth = torch.tensor([1, 1, 0, 0, 1])
    predicted = torch.tensor([1, 0, 0, 1, 1])  # 2 true, 1 false positives; 1 true, 1 false negative
    assert METRICS["accuracy"](predicted, truth) == pytest.approx(3 / 5)
    assert METRICS["f1"](predicted, truth) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    matthews = (2 * 1 - 1 * 1) / math.sqrt((2 + 1) * (2 + 1) * (1 + 1) * (1 + 1))
    assert METRICS["matthews"](predicted, truth) == pytest.approx(matthews)
    scores, others = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 4.0, 9.0, 16.0])
    assert METRICS["spearman"](scores, others) == pytest.approx(1)
    x, y = scores - scores.mean(), others - others.mean()
    pearson = float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())
    assert METRICS["pearson"](scores, others) == pytest.approx(pearson)


def sentiment(folder, rows=64):
    """Write an SST-2 that a few words decide; sentences of very different lengths."""
    words = {0: ["bad", "awful", "dull"], 1: ["good", "great", "fine"]}
    lines = ["sentence\tlabel"]
    for i in range(rows):
        label = i % 2
        lines.append(" ".join([words[label][i % 3]] * (1 + i % 7)) + f"\t{label}")
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def test_padding_and_batches_leave_every_logit_as_it_is(tmp_path, cache_dir):
    task = glue("sst2", sentiment(tmp_path), cache_dir, "task.eval_batch_size=7")
    adapter = LanguageAdapter(task.fresh(TINY_BERT, None, 0), task.example(), torch.device("cpu"))
    rows = task._encode(task._data.examples("validation"))
    batched = task._logits(adapter, rows)
    for row, logits in zip(rows, batched, strict=True):
        alone = {name: torch.tensor([ids]) for name, ids in row.items()}
        torch.testing.assert_close(adapter.forward(alone)[0].detach(), logits)


@pytest.mark.parametrize("told", [True, False], ids=["known", "hf"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_checkpoint_that_pads_on_the_left_has_every_texts_own_logits(
    tmp_path, cache_dir, family, told
):
    """Under model=hf nothing says of which kind a network is but itself."""
    kind = "encoder" if family == "bert" else "causal"
    model = LanguageModel(f"tiny_{family}", f"tiny:{family}", kind if told else None, [])
    task = glue("sst2", sentiment(tmp_path), cache_dir, "task.eval_batch_size=7")
    network = task.fresh(model, None, 0)
    network.save_pretrained(tmp_path / "left")
    task.tokenizer.save_pretrained(tmp_path / "left")
    file = tmp_path / "left" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))
    network = task.load(model, str(tmp_path / "left"))
    # An encoder's head reads the first column.
    assert task.tokenizer.padding_side == ("right" if kind == "encoder" else "left")
    adapter = LanguageAdapter(network, task.example(), torch.device("cpu"))
    rows = task._encode(task._data.examples("validation"))
    batched = task._logits(adapter, rows)
    with torch.no_grad():
        alone = [adapter.forward({n: torch.tensor([v]) for n, v in row.items()}) for row in rows]
    torch.testing.assert_close(torch.cat(alone), batched, rtol=0, atol=1e-5)


KINDS = [("Bert", "encoder"), ("Roberta", "encoder"), ("Electra", "encoder"),
         ("DistilBert", "encoder"), ("Llama", "causal"), ("GPT2", "causal"), ("OPT", "causal"),
         ("Qwen3", "causal"), ("GPTNeo", "causal")]  # fmt: skip


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_a_networks_kind_is_told_by_its_attention(family, kind):
    config = getattr(transformers, f"{family}Config")()
    with torch.device("meta"):
        network = getattr(transformers, f"{family}ForSequenceClassification")(config)
    assert kind_of(network, ("encoder", "causal")) == kind
    assert kind_of(network, ("causal",)) == "causal", "of a task for nothing else"
    assert kind_of(network, ("encoder",)) == "encoder"


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_counts_no_padding_whatever_is_in_it(tmp_path, cache_dir, side):
    task = glue("sst2", sentiment(tmp_path), cache_dir)
    network = task.fresh(TINY_BERT, None, 0)
    task.tokenizer.padding_side = side
    adapter = LanguageAdapter(network, task.example(), torch.device("cpu"))
    (batch,) = task.calibration(16, 0)
    mask = adapter.loss_mask([batch])
    lengths = [len(task.tokenizer(t.texts[0])["input_ids"]) for t in task._data.examples("train")]
    assert mask.sum() == batch["attention_mask"].sum() < mask.numel()
    assert set(mask.sum(1).tolist()) <= set(lengths)
    assert mask[:, 0 if side == "right" else -1].all()


def test_a_checkpoint_with_another_head_or_without_one_is_refused(tmp_path, cache_dir):
    task = glue("sst2", sentiment(tmp_path), cache_dir)
    with pytest.raises(ValueError, match=r"no weights for .*: it is no checkpoint of a BertForSeq"):
        task.load(TINY_BERT, "tiny:bert")
    mnli = glue("mnli", tmp_path, cache_dir)
    network = mnli.fresh(TINY_BERT, None, 0)
    network.save_pretrained(tmp_path / "three")
    mnli.tokenizer.save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="has 3 classes, glue/sst2 has 2"):
        task.load(TINY_BERT, str(tmp_path / "three"))


def test_a_missing_checkpoint_names_the_command_that_makes_it(cli, tmp_path):
    outcome = cli("model=tiny_bert", "task=glue/sst2", f"checkpoints_dir={tmp_path}")
    assert outcome.status == 1
    assert "`python finetune.py model=tiny_bert task=glue/sst2`" in outcome.err


def test_the_topics_passages_are_disjoint_by_split():
    data = PythonTopics(["types", "debugger"], 24)
    parts = {s: {e.texts for e in data.examples(s)} for s in ("train", "validation", "test")}
    assert len(parts["train"]) > 5 * len(parts["test"]) > 0
    assert not parts["train"] & parts["test"]


def test_tiny_bert_learns_the_topics_and_is_quantized(cli, results_dir):
    options = ("model=tiny_bert", "recon.iters=10", "recon.batch_size=16", "num_samples=64")
    outcome = cli("-m", *options, "quant=rtn,flexround", "bits=2")
    assert outcome.status == 0, outcome.err
    rtn, flexround = sorted(Store(results_dir).load(), key=lambda record: record.quant != "rtn")
    assert rtn.fp_metrics["accuracy"] > 2 * 100 / 6, "better than chance by far"
    assert rtn.fp_metrics == flexround.fp_metrics
    right = Store(results_dir).outcomes(flexround)["accuracy"]
    assert 100 * right.mean() == pytest.approx(flexround.value)
    blocks = zip(rtn.blocks, flexround.blocks, strict=True)
    assert all(f["error_after"] < r["error_after"] for r, f in blocks)
    assert len(flexround.blocks[0]["layers"]) == 6, "query, key, value, output, and two more"


@pytest.mark.parametrize(
    ("args", "message"),
    [(["task=glue/foo"], "available task: c4, digits, eleven, five_shot, glue/cola"),
     (["task=python_docs"], "the model is encoder, the task is for causal models"),
     (["task=squad", "model=tiny_gpt2"], "the model is causal, the task is for encoder models"),
     (["task.metrics=[bleu]"], "task.metrics=bleu: give some of accuracy, f1"),
     (["calibration=c4"], "calibration=c4 does nothing with the chosen task"),
     (["num_samples=100000"], "num_samples=100000: the train split has"),
     (["checkpoint=./nowhere"], "./nowhere: no such folder")],
)  # fmt: skip
def test_bad_input_is_one_line(cli, args, message):
    outcome = cli("quant=rtn", *(["model=tiny_bert"] if "model=tiny_gpt2" not in args else []),
                  *args)  # fmt: skip
    assert outcome.status == 1
    assert message in outcome.err.splitlines()[-1]
    assert outcome.err.splitlines()[-1].startswith("error: ")
