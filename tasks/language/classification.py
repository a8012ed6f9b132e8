"""Classification and scoring of texts: GLUE's tasks with GLUE's own metrics (arXiv 1804.07461)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from flexround.models.base import ModelAdapter
from flexround.models.language_adapter import Tokens
from tasks.base import Collator, Row
from tasks.bounds import Count, NotNegative
from tasks.finite import check_outputs
from tasks.language.base import TransformerTask, check_positions
from tasks.language.chance import check_classes, check_scores
from tasks.language.glue_data import Example, Glue, Sentences
from tasks.language.label_names import class_order
from tasks.language.rows import draw, pad


def accuracy(predicted: Tensor, truth: Tensor) -> float:
    """Return the share of right predictions."""
    return (predicted == truth).double().mean().item()


def f1(predicted: Tensor, truth: Tensor) -> float:
    """Return the F1 of class 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predicted, zero_division=0))


def matthews(predicted: Tensor, truth: Tensor) -> float:
    """Return Matthews' correlation."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(truth, predicted))


def pearson(predicted: Tensor, truth: Tensor) -> float:
    """Return Pearson's correlation."""
    if _constant(predicted) or _constant(truth):
        return 0.0
    return torch.corrcoef(torch.stack([predicted, truth]).double())[0, 1].item()


def spearman(predicted: Tensor, truth: Tensor) -> float:
    """Return Spearman's correlation of the ranks, ties at their mean."""
    from scipy.stats import spearmanr

    if _constant(predicted) or _constant(truth):
        return 0.0
    return float(spearmanr(predicted, truth).statistic)


def _constant(values: Tensor) -> bool:
    """Return whether values are all the same, with which nothing is correlated."""
    return bool((values == values[0]).all())


METRICS = {f.__name__: f for f in (accuracy, f1, matthews, pearson, spearman)}


class Classification(TransformerTask):
    """Metrics in percent of one or two texts' class, or of their score."""

    kinds = ("encoder", "causal")
    auto = "AutoModelForSequenceClassification"
    always_finetuned = True
    higher_is_better = True

    def __init__(
        self,
        name: str,
        version: int,
        data: Sentences,
        num_labels: Count,
        metrics: Annotated[list[str], Field(min_length=1)],
        splits: dict[str, str],
        max_len: Count,
        eval_batch_size: Count,
        expected: float | None,
        tolerance: NotNegative,
        cache_dir: str,
        checkpoints_dir: str,
    ) -> None:
        """Name the texts, the metrics (the main one first), and the splits they are taken on.

        splits maps the suffix of a metric's name to a split: "" and "_mm" for MNLI's two.
        num_labels 1 is a score.
        """
        super().__init__(name, version, expected, tolerance, cache_dir, checkpoints_dir)
        for metric in metrics:
            if metric not in METRICS:
                raise ValueError(f"task.metrics={metric}: give some of {', '.join(METRICS)}")
        if isinstance(data, Glue):
            for split in splits.values():
                data.check_split(split)
        self.metric = metrics[0]
        self._data, self._num_labels, self._metrics = data, num_labels, metrics
        self._splits, self._max_len = splits, max_len
        self._eval_batch_size = eval_batch_size
        self._order = torch.arange(num_labels)  # the task's class of each of the head's
        self._answers: list[tuple[Tensor, Tensor]] = []  # predictions and truth of each split

    def head(self) -> dict[str, Any]:
        """Return the number of classes for a new head, with their names in the task's order."""
        names = self._data.names
        if names is None:
            return {"num_labels": self._num_labels}
        return {
            "num_labels": self._num_labels,
            "id2label": dict(enumerate(names)),
            "label2id": {name: place for place, name in enumerate(names)},
        }

    def open(self, source: str, head: dict[str, Any] | None = None) -> tuple[nn.Module, Any]:
        """Return (network, tokenizer); the network knows the token to pad with."""
        network, tokenizer = super().open(source, head)
        if tokenizer.pad_token is None:  # GPT-2 and its kin were trained without one
            tokenizer.pad_token = tokenizer.eos_token
        config: Any = network.config
        config.pad_token_id = tokenizer.pad_token_id
        return network, tokenizer

    def check_network(self, network: nn.Module, source: str) -> None:
        """Check that the head has the task's classes, and keep in which order.

        Raises:
            ValueError: when it has others.
        """
        config: Any = network.config
        check_positions(network, source, self._max_len, "task.max_len")
        if config.num_labels != self._num_labels:
            raise ValueError(
                f"{source} has {config.num_labels} classes, {self.name} has {self._num_labels}; "
                "give a checkpoint fine-tuned for this task"
            )
        if self._data.names is not None:
            self._order = self._order_of(config.id2label, self._data.names, source)

    def _order_of(self, own: dict[int, str], names: Sequence[str], source: str) -> Tensor:
        """Return the task's class of each of the head's [classes], which own names."""
        try:
            order = class_order([str(own[place]) for place in sorted(own)], names)
        except ValueError as error:
            raise ValueError(
                f"{source} {error} as {self.name} does; give a checkpoint fine-tuned for this "
                "task, correct id2label in its config.json, or name GLUE's classes in this order "
                "as the checkpoint does, by task.data.names=[...]"
            ) from error
        return torch.tensor(range(len(names)) if order is None else order)

    def calibration(self, num_samples: int, seed: int) -> Sequence[Tokens]:
        """Return num_samples training examples as one padded batch."""
        return [pad(self._tokenizer, self._encode(draw(self._train(), num_samples, seed)))]

    def texts(self) -> Iterable[Any]:
        """Yield the examples of each split that the metrics are taken on."""
        for suffix, split in self._splits.items():
            yield suffix, *self._data.examples(split)

    @torch.no_grad()
    def evaluate(self, adapter: ModelAdapter) -> dict[str, float]:
        """Return each metric on each split."""
        results, outcomes, self._answers = {}, {}, []
        for suffix, split in self._splits.items():
            examples = self._data.examples(split)
            logits = self._logits(adapter, self._encode(examples))
            truth = torch.tensor([example.label for example in examples])
            scored = self._num_labels == 1
            predicted = logits[:, 0] if scored else self._order[logits.argmax(dim=1)]
            self._answers.append((predicted, truth))
            if self._num_labels > 1:
                outcomes["accuracy" + suffix] = predicted == truth
            for name in self._metrics:
                results[name + suffix] = 100 * METRICS[name](predicted, truth)
        self.outcomes = outcomes
        return results

    def check_full_precision(self, metrics: dict[str, float]) -> None:
        """Check the known metric, and what the last `evaluate` found of the network's answers.

        Raises:
            ValueError: when they are all the same, or worse than guesses; names what is usually
                wrong.
        """
        super().check_full_precision(metrics)
        for predicted, truth in self._answers:
            if (predicted == predicted[0]).all():
                raise ValueError(
                    f"full precision says the same of every text ({self.metric} "
                    f"{metrics[self.metric]:.2f}): "
                    "the checkpoint is not fine-tuned for this task"
                )
            if self._data.names is None:
                check_scores(predicted, truth)
            else:
                check_classes(predicted, truth, self._data.names, self._order)

    def training_rows(self) -> Sequence[Row]:
        """Return the tokens of the train split with their labels."""
        examples = self._train()
        return [
            {**row, "labels": example.label}
            for row, example in zip(self._encode(examples), examples, strict=True)
        ]

    def collator(self) -> Collator:
        """Return what pads rows to the longest of their batch."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(self._tokenizer)

    def _train(self) -> list[Example]:
        return self._data.examples("train")

    def _encode(self, examples: Sequence[Example]) -> list[Row]:
        columns = zip(*(example.texts for example in examples), strict=True)
        texts = [list(column) for column in columns]
        out = self._tokenizer(*texts, truncation=True, max_length=self._max_len)
        return [dict(zip(out, row, strict=True)) for row in zip(*out.values(), strict=True)]

    def _logits(self, adapter: ModelAdapter, rows: list[Row]) -> Tensor:
        # Sorted by length, batches hold little padding; the order has no part in the metrics.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        logits = torch.empty(len(rows), self._num_labels)
        for part in torch.tensor(order).split(self._eval_batch_size):
            batch = pad(self._tokenizer, [rows[i] for i in part.tolist()])
            logits[part] = adapter.forward(batch).float().cpu()
        check_outputs(logits)
        return logits
