"""Perplexity of a causal language model on a text corpus."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from flexround.models.base import ModelAdapter
from flexround.models.language_adapter import Tokens
from tasks.base import Collator, Row
from tasks.bounds import Count, NotNegative
from tasks.finite import perplexity_of
from tasks.language.base import TransformerTask, check_positions
from tasks.language.calibration_data import Calibration, Stream
from tasks.language.corpora import Corpus, HubCorpus
from tasks.language.divergence import Divergence
from tasks.language.protocols import Protocol, begun

log = logging.getLogger(__name__)


class LanguageModeling(TransformerTask):
    """exp(mean negative log-likelihood of the next token) over the protocol's windows.

    With divergence the quantized network is also compared with full precision at every position.
    """

    kinds = ("causal",)
    blockwise = True
    auto = "AutoModelForCausalLM"
    metric = "perplexity"
    higher_is_better = False

    def __init__(
        self,
        name: str,
        version: int,
        corpus: Corpus,
        calibration: Calibration | None,
        protocol: Protocol,
        seq_len: int,
        eval_batch_size: Count,
        divergence: bool,
        expected: float | None,
        tolerance: NotNegative,
        cache_dir: str,
        checkpoints_dir: str,
        begin_with_bos: bool = False,
    ) -> None:
        """Name the text and the protocol; seq_len is the length of a calibration sample.

        calibration None is the corpus's own train split, cut as the protocol cuts. With
        begin_with_bos the first token of each window and sample is <bos> in its place.
        """
        if seq_len < 2:
            raise ValueError(f"task.seq_len={seq_len}: give at least 2 tokens")
        super().__init__(name, version, expected, tolerance, cache_dir, checkpoints_dir)
        self._corpus, self._protocol = corpus, protocol
        self._calibration = calibration or Stream(corpus, protocol.name)
        self._seq_len, self._eval_batch_size = seq_len, eval_batch_size
        self._divergence, self._begin_with_bos = divergence, begin_with_bos
        self._windows: Tensor | None = None

    def check_network(self, network: nn.Module, source: str) -> None:
        """Check that a window fits the model's positions.

        Raises:
            ValueError: when it does not.
        """
        longest = max(self._seq_len, self._protocol.window)
        check_positions(network, source, longest, "task.seq_len and protocol.window")

    def training_rows(self) -> Sequence[Row]:
        """Return the train split in blocks as the run_clm example cuts them.

        They begin as the windows do that are evaluated.
        """
        blocks = Protocol("run_clm", "train", self._protocol.window, None)
        windows = self._begun(blocks.windows(self._corpus, self._tokenizer))
        return [{"input_ids": window, "labels": window} for window in windows]

    def collator(self) -> Collator:
        """Return what stacks windows: they are all of one length."""
        from transformers import default_data_collator

        return default_data_collator

    def calibration(self, num_samples: int, seed: int) -> Sequence[Tokens]:
        """Return num_samples sequences of seq_len tokens of train, drawn by seed."""
        found = self._calibration.sequences(self._tokenizer, self._seq_len, num_samples, seed)
        return [{"input_ids": part} for part in self._begun(found).split(self._eval_batch_size)]

    def texts(self) -> Sequence[Tensor]:
        """Return the protocol's windows of the evaluation split, [windows, tokens]."""
        if self._windows is None:
            self._windows = self._begun(self._protocol.windows(self._corpus, self._tokenizer))
            log.info("%s, %d windows of %d tokens", self._protocol.name, *self._windows.shape)
        return [self._windows]

    def _begun(self, windows: Tensor) -> Tensor:
        return begun(windows, self._tokenizer) if self._begin_with_bos else windows

    def compared(self, adapter: ModelAdapter) -> Iterator[Tensor] | None:
        """Return what the last layer gives on each batch of windows, of which follow the logits."""
        return adapter.last_outputs(self._batches()) if self._divergence else None

    def _batches(self) -> list[Tokens]:
        (windows,) = self.texts()
        return [{"input_ids": part} for part in windows.split(self._eval_batch_size)]

    def evaluate_reference(self, adapter: ModelAdapter) -> dict[str, float]:
        """Return the perplexity by what follows the reference: bit for bit that of `evaluate`."""
        if self.reference is None:
            return self.evaluate(adapter)
        batches, held = self._batches(), self.reference.split(self._eval_batch_size)
        found = (adapter.logits_after(b, h) for b, h in zip(batches, held, strict=True))
        return self._measured(adapter, found, None)

    def evaluate(self, adapter: ModelAdapter) -> dict[str, float]:
        """Return the perplexity; every window predicts all its tokens but the first.

        Where there is a `reference`, also the divergence from it.

        Raises:
            ValueError: when it is no number, or beyond what a float holds.
        """
        return self._measured(adapter, adapter.outputs(self._batches()), self.reference)

    @torch.no_grad()
    def _measured(
        self, adapter: ModelAdapter, found: Iterable[Tensor], reference: Tensor | None
    ) -> dict[str, float]:
        """Return what found, the logits on each batch, come to, beside those after reference."""
        (windows,) = self.texts()
        losses, divergence = list[float](), Divergence()
        for part, logits in zip(windows.split(self._eval_batch_size), found, strict=True):
            # By window: a batch's logits are the largest tensor of the whole run already.
            for predicted, window in zip(logits, part.to(logits.device), strict=True):
                own = predicted[:-1].float()
                loss = nn.functional.cross_entropy(own, window[1:], reduction="sum")
                if reference is not None:
                    hidden = reference[len(losses)][None]
                    (full,) = adapter.logits_after({"input_ids": window[None]}, hidden)
                    divergence.add(full[:-1], own)
                losses.append(loss.item())
        self.facts = self._of_text()
        means = torch.tensor(losses) / (windows.shape[1] - 1)
        self.outcomes = {"perplexity": means} | divergence.outcomes()
        perplexity = perplexity_of(sum(losses) / windows[:, 1:].numel())
        return {"perplexity": perplexity} | divergence.metrics()

    def _of_text(self) -> dict[str, str]:
        """Return which file was read for the evaluated split, where that is not its own."""
        corpus, split = self._corpus, self._protocol.split
        found = corpus.stand_in(split) if isinstance(corpus, HubCorpus) else None
        return {} if found is None else {"text": found}

    def check_full_precision(self, metrics: dict[str, float]) -> None:
        """Check the known perplexity, and that the network predicts better than chance.

        Raises:
            ValueError: names what is usually wrong.
        """
        super().check_full_precision(metrics)
        value = metrics["perplexity"]
        if value >= len(self._tokenizer):
            raise ValueError(
                f"full precision has perplexity {value:.0f}, a uniform guess over "
                f"the {len(self._tokenizer)} tokens has that too: model and tokenizer do not match"
            )
