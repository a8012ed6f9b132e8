"""Perplexity of a causal language model on a text corpus."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from flexround.models.base import ModelAdapter
from flexround.models.language import LanguageModel, Tokens
from tasks import pretrained, tiny
from tasks.base import Task
from tasks.corpora import Corpus
from tasks.perplexity import Protocol, cut, encode

log = logging.getLogger(__name__)


class LanguageModeling(Task):
    """exp(mean negative log-likelihood of the next token) over the protocol's windows."""

    kind = "causal"
    metric = "perplexity"
    higher_is_better = False

    def __init__(
        self,
        version: int,
        corpus: Corpus,
        protocol: Protocol,
        seq_len: int,
        eval_batch_size: int,
        expected: float | None,
        tolerance: float,
        cache_dir: str,
    ) -> None:
        """Name the text and the protocol; seq_len is the length of a calibration sample."""
        if seq_len < 2:
            raise ValueError(f"task.seq_len={seq_len}: give at least 2 tokens")
        self.version = version
        self._corpus, self._protocol = corpus, protocol
        self._seq_len, self._eval_batch_size = seq_len, eval_batch_size
        self._expected, self._tolerance = expected, tolerance
        self._cache_dir = Path(cache_dir)
        self._windows: Tensor | None = None

    def load(self, model: LanguageModel, checkpoint: str | None) -> nn.Module:
        """Return the network of checkpoint or of the model's own source; keep its tokenizer.

        Raises:
            ValueError: when a window is longer than the model's positions.
        """
        source = checkpoint or model.source
        if source.startswith(tiny.PREFIX):
            network, self._tokenizer = tiny.load(source, self._cache_dir)
        else:
            from transformers import AutoModelForCausalLM

            network, self._tokenizer = pretrained.load(AutoModelForCausalLM, source)
        positions = getattr(network.config, "max_position_embeddings", None)
        longest = max(self._seq_len, self._protocol.window)
        if positions is not None and longest > positions:
            raise ValueError(
                f"{source} has {positions} positions; lower task.seq_len "
                f"({self._seq_len}) and protocol.window ({self._protocol.window}) to that"
            )
        return network

    def example(self) -> Tokens:
        """Return two short sequences."""
        return {"input_ids": torch.arange(8).view(2, 4)}

    def calibration(self, num_samples: int, seed: int) -> Sequence[Tokens]:
        """Return num_samples sequences of seq_len tokens of train, drawn by seed."""
        text = self._corpus.text("train")
        sequences = cut(encode(self._tokenizer, [text], special=False)[0], self._seq_len)
        if num_samples > len(sequences):
            raise ValueError(
                f"num_samples={num_samples}: train has {len(sequences)} sequences of "
                f"{self._seq_len} tokens; lower num_samples or task.seq_len"
            )
        generator = torch.Generator().manual_seed(seed)
        chosen = sequences[torch.randperm(len(sequences), generator=generator)[:num_samples]]
        return [{"input_ids": part} for part in chosen.split(self._eval_batch_size)]

    @torch.no_grad()
    def evaluate(self, adapter: ModelAdapter) -> dict[str, float]:
        """Return the perplexity; every window predicts all its tokens but the first."""
        if self._windows is None:
            self._windows = self._protocol.windows(self._corpus, self._tokenizer)
            log.info("%s, %d windows of %d tokens", self._protocol.name, *self._windows.shape)
        total = 0.0
        for part in self._windows.split(self._eval_batch_size):
            logits = adapter.forward({"input_ids": part}).float()
            targets = part[:, 1:].reshape(-1).to(logits.device)
            predicted = logits[:, :-1].flatten(0, 1)
            total += nn.functional.cross_entropy(predicted, targets, reduction="sum").item()
        return {"perplexity": math.exp(total / self._windows[:, 1:].numel())}

    def check_full_precision(self, metrics: dict[str, float]) -> None:
        """Refuse a model that misses its known perplexity or predicts no better than chance.

        Raises:
            ValueError: names what is usually wrong.
        """
        value = metrics["perplexity"]
        if self._expected is not None and abs(value - self._expected) > self._tolerance:
            raise ValueError(
                f"full precision has perplexity {value:.3f}, expected are {self._expected:.3f} "
                f"(tolerance {self._tolerance}): check model, text and protocol "
                f"({self._protocol}), or set expected_fp"
            )
        if value >= len(self._tokenizer):
            raise ValueError(
                f"full precision has perplexity {value:.0f}, a uniform guess over "
                f"the {len(self._tokenizer)} tokens has that too: model and tokenizer do not match"
            )
