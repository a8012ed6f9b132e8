"""Answers to questions about a paragraph, SQuAD v1.1 (Rajpurkar et al., EMNLP 2016).

Contexts are cut into windows as transformers' example script run_qa does (FlexRound, app. G).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from flexround.models.base import ModelAdapter
from flexround.models.language_adapter import Tokens
from tasks.base import Collator, Row
from tasks.bounds import Count, NotNegative
from tasks.finite import check_outputs
from tasks.language.base import TransformerTask, check_at_least, check_positions
from tasks.language.rows import draw, pad
from tasks.language.squad_answers import (
    Question,
    Spans,
    best_span,
    locate,
    read,
    scores,
)

CHUNK = 1000  # questions that are tokenized at once
UNTRAINED = 5.0  # F1 in percent that a head as initialised stays below


@dataclass(frozen=True)
class Window:
    """What the network sees of a question at once.

    Attributes:
        question: its place among the questions.
        inputs: what the network takes, [tokens] each.
        spans: the characters of the context that each token stands for.
    """

    question: int
    inputs: dict[str, Tensor]
    spans: Spans


class Squad(TransformerTask):
    """F1 and exact match, in percent, of the answers that an encoder finds in the context."""

    kinds = ("encoder",)
    auto = "AutoModelForQuestionAnswering"
    always_finetuned = True
    metric = "f1"
    higher_is_better = True

    def __init__(
        self,
        name: str,
        version: int,
        path: str,
        local: str | None,
        files: dict[str, list[str]],
        max_len: Count,
        stride: int,
        n_best: int,
        max_answer: int,
        eval_batch_size: Count,
        max_eval: int | None,
        expected: float | None,
        tolerance: NotNegative,
        cache_dir: str,
        checkpoints_dir: str,
    ) -> None:
        """Name the data (path on the hub, or files in the folder local) and how windows are cut.

        Raises:
            ValueError: for a number out of its range.
        """
        if not 0 <= stride < max_len:
            raise ValueError(f"task.stride={stride}: give 0 to below task.max_len ({max_len})")
        check_at_least(1, {"n_best": n_best, "max_answer": max_answer, "max_eval": max_eval})
        super().__init__(name, version, expected, tolerance, cache_dir, checkpoints_dir)
        self._path, self._local, self._files = path, local, files
        self._max_len, self._stride = max_len, stride
        self._n_best, self._max_answer = n_best, max_answer
        self._eval_batch_size, self._max_eval = eval_batch_size, max_eval

    def check_network(self, network: nn.Module, source: str) -> None:
        """Check that a window fits the model's positions.

        Raises:
            ValueError: when it does not, or the tokenizer can't tell where its tokens stand.
        """
        check_positions(network, source, self._max_len, "task.max_len")
        if not self._tokenizer.is_fast:
            raise ValueError(f"{source}: task={self.name} needs a fast tokenizer (tokenizer.json)")

    def training_rows(self) -> Sequence[Row]:
        """Return all windows of the train split with the tokens of the first gold answer."""
        questions = self._questions("train")
        rows = []
        for window in self._windows(questions):
            start, end = locate(window.spans, questions[window.question].first)
            rows.append({**window.inputs, "start_positions": start, "end_positions": end})
        return rows

    def collator(self) -> Collator:
        """Return what pads rows to the longest of their batch."""
        return partial(pad, self._tokenizer)

    def calibration(self, num_samples: int, seed: int) -> Sequence[Tokens]:
        """Return the first windows of num_samples training questions as one padded batch."""
        first: dict[int, dict[str, Tensor]] = {}
        for window in self._windows(draw(self._questions("train"), num_samples, seed)):
            first.setdefault(window.question, window.inputs)
        return [pad(self._tokenizer, list(first.values()))]

    def texts(self) -> Sequence[Question]:
        """Return the questions of the validation split."""
        return self._questions("validation")[: self._max_eval]

    @torch.no_grad()
    def evaluate(self, adapter: ModelAdapter) -> dict[str, float]:
        """Return F1 and exact match in percent, the means over the questions.

        An answer is the best one over all windows of its question.
        """
        questions = self.texts()
        answers = self._answers(adapter, questions)
        golds = [question.answers for question in questions]
        found = scores(answers, golds)
        self.outcomes = {
            "f1": 100 * torch.tensor(found["f1"]),
            "exact_match": torch.tensor(found["exact_match"]).bool(),
        }
        return {name: 100 * sum(own) / len(own) for name, own in found.items()}

    def check_full_precision(self, metrics: dict[str, float]) -> None:
        """Check the known F1, and that the network's head has been trained.

        Raises:
            ValueError: names what is usually wrong.
        """
        super().check_full_precision(metrics)
        value = metrics["f1"]
        if value < UNTRAINED:
            raise ValueError(
                f"full precision has F1 {value:.2f}, below {UNTRAINED:.0f}: its head for answers "
                "was never trained; give a fine-tuned checkpoint=PATH"
            )

    def _answers(self, adapter: ModelAdapter, questions: Sequence[Question]) -> list[str]:
        best = [(-torch.inf, "")] * len(questions)
        # Sorted by length, batches hold little padding.
        windows = sorted(self._windows(questions), key=lambda window: len(window.spans))
        for first in range(0, len(windows), self._eval_batch_size):
            part = windows[first : first + self._eval_batch_size]
            batch = pad(self._tokenizer, [window.inputs for window in part])
            logits = adapter.forward(batch).float().cpu()  # [windows, tokens, 2]
            real = batch["attention_mask"].bool()
            check_outputs(logits[real])
            for window, values, mask in zip(part, logits, real, strict=True):
                score, (start, end) = best_span(
                    values[mask], window.spans, self._n_best, self._max_answer
                )
                if score > best[window.question][0]:
                    best[window.question] = score, questions[window.question].context[start:end]
        return [text for _, text in best]

    def _windows(self, questions: Sequence[Question]) -> Iterator[Window]:
        """Yield the overlapping windows of each question in order."""
        for first in range(0, len(questions), CHUNK):
            part = questions[first : first + CHUNK]
            self._check_room(part)
            encoded = self._tokenizer(
                [question.text for question in part],
                [question.context for question in part],
                truncation="only_second",
                max_length=self._max_len,
                stride=self._stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            owners = encoded.pop("overflow_to_sample_mapping")
            offsets = encoded.pop("offset_mapping")
            for i, owner in enumerate(owners):
                # Tensors take a fifth of the memory of lists.
                inputs = {
                    key: torch.tensor(rows[i], dtype=torch.int32) for key, rows in encoded.items()
                }
                sides = zip(offsets[i], encoded.sequence_ids(i), strict=True)
                spans = [tuple(span) if side == 1 else None for span, side in sides]
                yield Window(first + owner, inputs, spans)

    def _check_room(self, questions: Sequence[Question]) -> None:
        texts = [question.text for question in questions]
        ids = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        taken = max(map(len, ids)) + self._tokenizer.num_special_tokens_to_add(pair=True)
        if taken + self._stride >= self._max_len:
            raise ValueError(
                f"task.max_len={self._max_len}: a question takes {taken} tokens and windows share "
                f"task.stride={self._stride}; raise max_len above both together, or lower stride"
            )

    def _questions(self, split: str) -> list[Question]:
        return read(self._path, self._local, self._files, split)
