"""Windows of a text: those that a process keeps are those that would be made again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tasks.language import protocols
from tasks.language.protocols import windows_of

WORDS = {"<s>": 0, "a": 1, "b": 2, "c": 3}


def corpus(*rows: str) -> Any:
    """Return a corpus whose every split has these rows."""
    return SimpleNamespace(
        rows=lambda split: list(rows), text=lambda split: " ".join(rows), separator="\n\n"
    )


def tokenizer(words: dict[str, int] = WORDS, *, starts: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words, with <s> before each text or without."""
    backend = Tokenizer(WordLevel(words, unk_token="<s>"))
    backend.pre_tokenizer = Whitespace()
    if starts:
        backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "_MADE", {})


def test_a_text_is_tokenized_once(monkeypatch: pytest.MonkeyPatch):
    first = windows_of(corpus("a b c", "b"), "train", "run_clm", 2, tokenizer())
    assert first.tolist() == [[1, 2], [3, 2]]
    monkeypatch.setattr(protocols, "encode", None)
    again = windows_of(corpus("a b c", "b"), "train", "run_clm", 2, tokenizer())
    assert again.tolist() == first.tolist()
    again.zero_()  # what a caller does to its own is no other's
    assert windows_of(corpus("a b c", "b"), "train", "run_clm", 2, tokenizer()).equal(first)


@pytest.mark.parametrize(
    ("rows", "name", "window", "other", "expected"),
    [
        (["a b c c"], "run_clm", 2, tokenizer(), [[1, 2], [3, 3]]),
        (["a b", "cb"], "run_clm", 1, tokenizer(), [[1], [2], [0]]),
        (["a b", "c b"], "run_clm", 4, tokenizer(), [[1, 2, 3, 2]]),
        (["a b", "c b"], "run_clm", 2, tokenizer(starts=True), [[0, 1], [2, 0], [3, 2]]),
        (["a b", "c b"], "file", 2, tokenizer(starts=True), [[1, 2], [3, 2]]),
        (["a b", "c b"], "gptq", 2, tokenizer(starts=True), [[0, 1], [2, 3]]),
        (["a b", "c b"], "run_clm", 2, tokenizer({**WORDS, "b": 3, "c": 2}), [[1, 3], [2, 3]]),
    ],
)
def test_what_windows_depend_on_tells_them_apart(
    rows: list[str], name: str, window: int, other: Any, expected: list[list[int]]
):
    assert windows_of(corpus("a b", "c b"), "train", "run_clm", 2, tokenizer()).tolist() == [
        [1, 2],
        [3, 2],
    ]
    assert windows_of(corpus(*rows), "train", name, window, other).tolist() == expected


def test_few_are_kept():
    for number in range(3 * protocols.MOST_MADE):
        windows_of(corpus("a b c " * number), "train", "file", 3, tokenizer())
    assert len(protocols._MADE) == protocols.MOST_MADE


def test_a_tokenizer_that_does_not_tell_its_own_is_asked_again():
    class Spaces:
        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[len(word) for word in text.split()] for text in texts]}

    assert windows_of(corpus("a bb"), "train", "file", 2, Spaces()).tolist() == [[1, 2]]
    assert not protocols._MADE
