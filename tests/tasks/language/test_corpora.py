"""Local corpora: which of their files are read, what is told of it, and what is refused."""

from __future__ import annotations

import gzip

import pytest
import torch

from flexround.models.language_adapter import LanguageAdapter
from tasks.language.corpora import C4, TextFiles
from tasks.language.protocols import Protocol
from tests.tasks.language.test_perplexity import modeling, tiny_model, wikitext

pytest.importorskip("transformers", reason="the extra language is not installed")


def evaluated(folder, cache_dir):
    """Return a task that has evaluated a tiny network on folder's WikiText-2."""
    part = Protocol("file", "test", 64, 2)
    task = modeling(cache_dir, corpus=wikitext(folder), protocol=part)
    network = task.load(tiny_model(), None)
    task.evaluate(LanguageAdapter(network, task.example(), torch.device("cpu")))
    return task


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "tasks.language.corpora"]


def test_a_wikitext_of_unk_tokens_is_told_in_the_log_and_in_the_facts(tmp_path, cache_dir, caplog):
    """wiki.*.tokens is WikiText-2 with its rare words as <unk>, another text than the hub's raw."""
    text = " the <unk> sat on the <unk> of a bench .\n" * 100
    (tmp_path / "wiki.test.tokens").write_text(text)
    assert evaluated(tmp_path, cache_dir).facts == {"text": "wiki.test.tokens"}
    (told,) = warnings(caplog)
    assert told == (
        f"{tmp_path / 'wiki.test.tokens'} is read, since wiki.test.raw is not there: another text, "
        "200 of whose words are <unk>; perplexities on the two do not compare"
    )
    caplog.clear()
    (tmp_path / "wiki.test.raw").write_text(text.replace("<unk>", "cat"))
    assert evaluated(tmp_path, cache_dir).facts == {}
    assert not warnings(caplog)


LATIN_1 = b"fine\ncaf\xe9\n"


def test_a_text_that_is_not_utf_8_is_named_with_its_line(tmp_path):
    (tmp_path / "wiki.test.raw").write_bytes(LATIN_1)
    told = r"wiki.test.raw is not UTF-8 text \(line 2\); convert or remove it$"
    with pytest.raises(ValueError, match=told):
        wikitext(tmp_path).rows("test")
    with pytest.raises(ValueError, match=told):
        TextFiles(str(tmp_path)).rows("train")


GOOD = b'{"text": "a"}\n'


@pytest.mark.parametrize(
    ("line", "told"),
    [(b"[1]\n", "no text in it"), (b'{"text": null}\n', "no text in it"), (b"3\n", "no text in it"),
     (b"{}\n", "no text in it"), (b"not json\n", "Expecting value"), (b"[" * 100_000, "recursion"),
     (b'{"text": "\xe9"}\n', "can't decode byte")],
)  # fmt: skip
def test_a_line_that_is_no_document_is_named(tmp_path, line, told):
    (tmp_path / "a.gz").write_bytes(gzip.compress(GOOD + GOOD + line))
    with pytest.raises(ValueError, match=told) as error:
        C4(str(tmp_path), {"train": ["a.gz"]}, 9).rows("train")
    path = tmp_path / "a.gz"
    assert str(error.value).startswith(f"{path}, line 3: damaged or no shard of allenai/c4 (")


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_archive_is_named(tmp_path, damage):
    data = gzip.compress(b'{"text": "abcdefgh"}\n' * 1000)
    half = len(data) // 2
    flipped = data[:half] + bytes(b ^ 255 for b in data[half:-8]) + data[-8:]
    (tmp_path / "a.gz").write_bytes(data[:half] if damage == "cut" else flipped)
    with pytest.raises(ValueError, match=r"a\.gz, line \d+: damaged or no shard of allenai/c4"):
        C4(str(tmp_path), {"train": ["a.gz"]}, 9).rows("train")


def test_a_text_of_too_few_lines_for_its_splits_says_so(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("line\n" * 9)
    assert len(TextFiles(str(file)).rows("validation")) == 1
    with pytest.raises(ValueError, match=r"text.txt: 9 lines are too few .* test; give 10 or more"):
        TextFiles(str(file)).rows("test")
    file.write_text("line\n" * 10)
    assert len(TextFiles(str(file)).rows("test")) == 1
