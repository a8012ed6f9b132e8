"""Local corpora: which of their files are read, what is told of it, and what is refused."""

from __future__ import annotations

import pytest
import torch

from flexround.models.language_adapter import LanguageAdapter
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
