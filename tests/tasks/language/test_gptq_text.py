"""What GPTQ's protocol reads of each corpus: IST-DASLab/gptq at 2d65066, datautils.py, --new-eval.

get_wikitext2 joins the test split by blank lines; get_ptb_new joins PTB's test split by spaces;
get_c4_new joins the first 1,100 documents of validation by spaces and keeps 256 windows.
"""

from __future__ import annotations

import gzip
import json

import pytest

from experiment.build import build
from experiment.identity import identity
from tests.experiment.test_configs import composed
from tests.tasks.language.test_perplexity import Letters

PTB = {"train": "ptb.train.txt", "validation": "ptb.valid.txt", "test": "ptb.test.txt"}
WIKI = {split: f"wiki.{split}.raw" for split in ("train", "validation", "test")}
SHARDS = {
    "train": "en/c4-train.00000-of-01024.json.gz",
    "validation": "en/c4-validation.00000-of-00008.json.gz",
}


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a tiny PTB, WikiText-2 and C4 in their published layouts."""
    for split, name in PTB.items():
        (tmp_path / name).write_text(f" {split} one \n {split} two \n")
    for split, name in WIKI.items():
        (tmp_path / name).write_text(f" = {split} = \n \n text \n")
    for split, name in SHARDS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with gzip.open(tmp_path / name, "wt") as file:
            file.writelines(json.dumps({"text": f"{split[0]}{i % 10}"}) + "\n" for i in range(1200))
    return tmp_path


def read(task, folder, *overrides):
    """Return the (windows, text that they hold) of task's corpus under protocol=gptq."""
    cfg = composed("model=opt_125m", f"task={task}", "quant=gptq", f"data_dir={folder}", *overrides)
    assert cfg.protocol.name == "gptq"
    windows = build(cfg.task.protocol).windows(build(cfg.task.corpus), Letters())
    start, *ids = windows.flatten().tolist()
    assert start == 1, "the tokenizer's own start stands once, before the text"
    return windows, "".join(map(chr, ids))


def test_penn_treebank_is_its_test_split_joined_by_spaces(folder):
    text = "test one test two"
    assert read("ptb", folder, f"protocol.window={len(text) + 1}")[1] == text


def test_a_calibration_on_penn_treebank_is_its_train_split_joined_by_spaces(folder):
    text = "train one train two"
    cfg = composed("model=opt_125m", "task=ptb", "quant=gptq", f"data_dir={folder}",
                   "calibration=own", f"task.seq_len={len(text) + 1}")  # fmt: skip
    task = build(cfg.task)
    task._tokenizer = Letters()
    (batch,) = task.calibration(1, 0)
    assert "".join(map(chr, batch["input_ids"][0, 1:].tolist())) == text


def test_wikitext2_is_its_test_split_joined_by_blank_lines(folder):
    text = " = test = \n" + "\n\n" + "" + "\n\n" + " text \n"
    assert read("wikitext2", folder, f"protocol.window={len(text) + 1}")[1] == text


def test_c4_is_the_first_1100_documents_of_validation_joined_by_spaces(folder):
    text = " ".join(f"v{i % 10}" for i in range(1100))
    windows, found = read("c4", folder, f"protocol.window={len(text) + 1}")
    assert (found, len(windows)) == (text, 1)
    with pytest.raises(ValueError, match="shorter than one window"):
        read("c4", folder, f"protocol.window={len(text) + 2}")


def test_of_c4_256_windows_are_read_and_of_the_others_all(folder):
    windows, text = read("c4", folder, "protocol.window=8")
    assert windows.shape == (256, 8)
    assert text == " ".join(f"v{i % 10}" for i in range(1100))[: 256 * 8 - 1]
    assert len(read("c4", folder, "protocol.window=8", "protocol.max_windows=3")[0]) == 3
    (folder / PTB["test"]).write_text("abc\n" * 600)
    assert len(read("ptb", folder, "protocol.window=4")[0]) == 600


def test_only_what_was_joined_by_blank_lines_keeps_its_runs():
    def settings(task):
        return identity(composed("model=opt_125m", f"task={task}", "quant=gptq"))["task"]

    assert "joined_by" not in settings("wikitext2")["corpus"]
    assert settings("ptb")["corpus"]["joined_by"] == "space"
    assert (settings("ptb")["version"], settings("c4")["version"]) == (3, 3)


def test_penn_treebank_of_the_hub_is_its_own_conversion_and_no_script(tmp_path, monkeypatch):
    """`datasets` runs no scripts any more; the folders are as the hub's conversions lie."""
    datasets = pytest.importorskip("datasets", reason="the extra language is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split in PTB:
        (tmp_path / "hub" / "penn_treebank" / split).mkdir(parents=True)
        data = datasets.Dataset.from_dict({"sentence": [f"{split} one", f"{split} two"]})
        data.to_parquet(tmp_path / "hub" / "penn_treebank" / split / "0000.parquet")
    load, seen = datasets.load_dataset, {}

    def from_folder(path, *args, revision, **options):
        seen.update(path=path, revision=revision)
        return load(str(tmp_path / "hub"), *args, **options)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    corpus = build(composed("model=opt_125m", "task=ptb").task.corpus)
    assert corpus.rows("test") == ["test one", "test two"]
    assert seen == {"path": "ptb_text_only", "revision": "refs/convert/parquet"}
