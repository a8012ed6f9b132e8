"""Questions and answers of SQuAD v1.1: read, found in tokens, chosen by logits, scored.

Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (EMNLP 2016), sec.
6.1, and the published evaluation of v1.1; the choice as in transformers' example script run_qa.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.language.hub_data import load_hub

NO_ANSWER = (0, 0)  # both on the first token, [CLS]

Span = tuple[int, int]  # characters [first, past the last) of the context
Spans = Sequence[Span | None]  # of each token; None outside of the context


@dataclass(frozen=True)
class Question:
    """A question about a context, with its gold answers and where in the context they start."""

    text: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]

    @property
    def first(self) -> Span:
        """The characters of the first gold answer."""
        return self.starts[0], self.starts[0] + len(self.answers[0])


def read(
    path: str, local: str | None, files: Mapping[str, Sequence[str]], split: str
) -> list[Question]:
    """Return the questions of a split of the hub's data set path, or of its file in local.

    Raises:
        ValueError: when the data can't be had or are something else.
    """
    names = [names[0] for names in files.values()]
    if local is not None:
        return _from_file(Path(local).expanduser() / files[split][0], names)
    return [
        _question(row["question"], row["context"], **row["answers"])
        for row in load_hub(path, None, split, None, names)
    ]


def _from_file(path: Path, names: Sequence[str]) -> list[Question]:
    if not path.is_file():
        raise ValueError(
            f"data_dir={path.parent}: no {path.name} there; give a folder with "
            f"{' and '.join(names)}, or leave data_dir out for the hub"
        )
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        questions = [
            _in_file(entry, paragraph["context"])
            for article in articles
            for paragraph in article["paragraphs"]
            for entry in paragraph["qas"]
        ]
        if not questions:
            raise ValueError("no questions")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is not SQuAD v1.1 ({type(error).__name__}: {reason}); get it again from "
            "https://rajpurkar.github.io/SQuAD-explorer"
        ) from error
    return questions


def _in_file(entry: Mapping[str, Any], context: str) -> Question:
    answers = {key: [a[key] for a in entry["answers"]] for key in ("text", "answer_start")}
    if not all(isinstance(text, str) for text in (entry["question"], context, *answers["text"])):
        raise TypeError("a question, context or answer is no text")
    if not all(isinstance(start, int) for start in answers["answer_start"]):
        raise TypeError("an answer_start is no whole number")
    return _question(entry["question"], context, **answers)


def _question(
    question: str, context: str, text: Sequence[str], answer_start: Sequence[int]
) -> Question:
    if not text:
        raise ValueError(f"no answer to {question!r}, as in v2.0")
    # Some questions start with many blanks, which would only narrow the context's windows.
    return Question(question.lstrip(), context, tuple(text), tuple(answer_start))


def locate(spans: Spans, answer: Span) -> tuple[int, int]:
    """Return the first and the last token of answer, or NO_ANSWER where it is not all inside."""
    inside = [(i, *span) for i, span in enumerate(spans) if span is not None]
    if not inside or answer[0] < inside[0][1] or answer[1] > inside[-1][2]:
        return NO_ANSWER
    start = max(i for i, first, _ in inside if first <= answer[0])
    end = min(i for i, _, last in inside if last >= answer[1])
    return start, end


def best_span(logits: Tensor, spans: Spans, n_best: int, longest: int) -> tuple[float, Span]:
    """Return the best answer of a window as (start logit + end logit, characters of the context).

    logits is [tokens, 2]. Starts and ends are among the n_best of all tokens; an answer lies in the
    context and has at most longest tokens. Without any it is (-inf, (0, 0)).
    """
    top = logits.topk(min(n_best, len(logits)), dim=0)  # [n_best, 2]
    starts, ends = top.indices.unbind(1)
    inside = torch.tensor([span is not None for span in spans])
    length = ends[None, :] - starts[:, None] + 1  # [n_best starts, n_best ends]
    allowed = (length >= 1) & (length <= longest) & inside[starts][:, None] & inside[ends][None, :]
    scores = (top.values[:, 0, None] + top.values[None, :, 1]).masked_fill(~allowed, -torch.inf)
    row, column = divmod(int(scores.argmax()), len(ends))
    first, last = spans[int(starts[row])], spans[int(ends[column])]
    if not allowed[row, column] or first is None or last is None:
        return -torch.inf, (0, 0)
    return scores[row, column].item(), (first[0], last[1])


def normalise(text: str) -> str:
    """Return text in lower case without punctuation, articles and superfluous blanks."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, gold: str) -> float:
    """Return 1 where both are the same after normalisation, else 0."""
    return float(normalise(answer) == normalise(gold))


def f1(answer: str, gold: str) -> float:
    """Return the harmonic mean of precision and recall over the normalised words."""
    given, wanted = normalise(answer).split(), normalise(gold).split()
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


def scores(answers: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """Return by metric the score of each question from 0 to 1, by its best gold answer."""
    found = {}
    for name, score in (("f1", f1), ("exact_match", exact_match)):
        pairs = zip(answers, golds, strict=True)
        found[name] = [max(score(answer, gold) for gold in own) for answer, own in pairs]
    return found
