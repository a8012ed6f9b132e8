"""Sentences about triples, WebNLG 2017 (Gardent et al., INLG 2017), scored by BLEU.

Prompt and beam search as in microsoft/LoRA's NLG example, which the FlexRound paper follows
(sec. 4.3, app. J): "subject : property : object" joined by " | ", the end token, the sentence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flexround.models.base import ModelAdapter
from flexround.models.language_adapter import Tokens
from tasks.base import Collator, Row
from tasks.bounds import Count, NotNegative, WholeNotNegative
from tasks.finite import check_outputs
from tasks.language.base import TransformerTask, check_at_least, check_positions
from tasks.language.rows import draw
from tasks.language.webnlg_data import IGNORED, LAYOUT, read, scorer, scores, stack

log = logging.getLogger(__name__)


class WebNLG(TransformerTask):
    """BLEU on the categories that train has (seen), on the others (unseen), and on all."""

    kinds = ("causal",)
    auto = "AutoModelForCausalLM"
    always_finetuned = True
    metric = "bleu_all"
    higher_is_better = True

    def __init__(
        self,
        name: str,
        version: int,
        local: str | None,
        max_len: Count,
        beams: int,
        length_penalty: float,
        no_repeat_ngram_size: WholeNotNegative,
        max_new_tokens: int,
        tokenize: Literal["13a", "char", "intl", "none", "zh"],
        lowercase: bool,
        eval_batch_size: Count,
        max_eval: int | None,
        expected: float | None,
        tolerance: NotNegative,
        cache_dir: str,
        checkpoints_dir: str,
    ) -> None:
        """Name the folder of the data, the search and sacrebleu's tokenization.

        Raises:
            ValueError: without a folder, or for a number out of its range.
        """
        if local is None:
            raise ValueError(f"task={name} needs data_dir=PATH, {LAYOUT}; the hub has no copy")
        check_at_least(1, {"beams": beams, "max_new_tokens": max_new_tokens, "max_eval": max_eval})
        super().__init__(name, version, expected, tolerance, cache_dir, checkpoints_dir)
        self._folder, self._max_len = Path(local).expanduser(), max_len
        self._beams, self._length_penalty = beams, length_penalty
        self._no_repeat_ngram_size, self._max_new_tokens = no_repeat_ngram_size, max_new_tokens
        self._tokenize, self._lowercase = tokenize, lowercase
        self._eval_batch_size, self._max_eval = eval_batch_size, max_eval

    def check_network(self, network: nn.Module, source: str) -> None:
        """Check that a sequence fits the model's positions.

        Raises:
            ValueError: when it does not, or the tokenizer has no end token.
        """
        check_positions(network, source, self._max_len, "task.max_len")
        if self._tokenizer.eos_token_id is None:
            raise ValueError(f"{source}: task={self.name} needs a tokenizer with an end token")

    def training_rows(self) -> Sequence[Row]:
        """Return a row for every good sentence of train; the prompt's labels are ignored."""
        entries = read(self._folder, "train")
        pairs = [(entry.prompt, reference) for entry in entries for reference in entry.references]
        prompts = self._prompts([prompt for prompt, _ in pairs])
        sentences = self._encode([f" {reference}" for _, reference in pairs])
        rows = []
        for prompt, sentence in zip(prompts, sentences, strict=True):
            target = [*sentence, self._tokenizer.eos_token_id]
            ids, labels = prompt + target, [IGNORED] * len(prompt) + target
            if len(ids) <= self._max_len:
                mask = [1] * len(ids)
                rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
        if len(rows) < len(pairs):
            log.warning("train: left out %d rows over max_len tokens", len(pairs) - len(rows))
        return rows

    def collator(self) -> Collator:
        """Return what pads rows to the longest of their batch, labels with the ignored one."""
        return self._pad

    def calibration(self, num_samples: int, seed: int) -> Sequence[Tokens]:
        """Return num_samples training sequences, prompt and sentence, as one padded batch."""
        rows = draw(self.training_rows(), num_samples, seed)
        names = ("input_ids", "attention_mask")
        return [self._pad([{name: row[name] for name in names} for row in rows])]

    def texts(self) -> Iterable[Any]:
        """Yield the test entries, and the categories of training, which say what was seen."""
        yield sorted({entry.category for entry in read(self._folder, "train")})
        yield from read(self._folder, "test")[: self._max_eval]

    @torch.no_grad()
    def evaluate(self, adapter: ModelAdapter) -> dict[str, float]:
        """Return BLEU on the seen, the unseen and all entries, where there are any."""
        metric = scorer(self._tokenize, self._lowercase)  # fails before the long search if it does
        seen = {entry.category for entry in read(self._folder, "train")}
        entries = read(self._folder, "test")[: self._max_eval]
        sentences = self._sentences(adapter, [entry.prompt for entry in entries])
        return scores(metric, sentences, entries, seen)

    def _sentences(self, adapter: ModelAdapter, texts: Sequence[str]) -> list[str]:
        """Return the sentence that the model makes of each prompt, by beam search."""
        prompts = self._prompts(texts)
        longest = max(map(len, prompts))
        if longest + self._max_new_tokens > self._max_len:
            raise ValueError(
                f"task.max_new_tokens={self._max_new_tokens}: the longest prompt has {longest} "
                f"tokens, together more than task.max_len={self._max_len}; raise that, lower "
                "task.max_new_tokens, or take fewer entries (task.max_eval)"
            )
        sentences = [""] * len(prompts)
        # Sorted by length, batches hold little padding.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for first in range(0, len(order), self._eval_batch_size):
            part = order[first : first + self._eval_batch_size]
            made = self._generate(adapter, [prompts[i] for i in part])
            for i, sentence in zip(part, made, strict=True):
                sentences[i] = sentence
        return sentences

    def _generate(self, adapter: ModelAdapter, prompts: Sequence[list[int]]) -> list[str]:
        rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in prompts]
        batch = self._pad(rows, side="left")  # so that all go on at the same place
        length = batch["input_ids"].shape[1]
        model: Any = adapter.model.to(adapter.device)
        out = model.generate(
            **{name: values.to(adapter.device) for name, values in batch.items()},
            do_sample=False,
            num_beams=self._beams,
            # LoRA's search goes on to the last token, whatever no beam can reach any more.
            early_stopping="never" if self._beams > 1 else False,
            length_penalty=self._length_penalty,
            max_new_tokens=self._max_new_tokens,
            logits_processor=[_numbers, *self._no_repeats(length)],
            eos_token_id=self._tokenizer.eos_token_id,
            pad_token_id=self._pad_id,
            use_cache=True,  # the adapter has switched it off in the model's config
        )
        texts = self._tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def _prompts(self, texts: Sequence[str]) -> list[list[int]]:
        return [[*ids, self._tokenizer.eos_token_id] for ids in self._encode(texts)]

    @property
    def _pad_id(self) -> int:
        pad: int | None = self._tokenizer.pad_token_id
        return self._tokenizer.eos_token_id if pad is None else pad  # GPT-2 has none

    def _pad(self, rows: Sequence[Row], side: str = "right") -> dict[str, Tensor]:
        return stack(rows, self._pad_id, side)

    def _no_repeats(self, prompt: int) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """Return what bans repeated n-grams, of the sentence alone.

        transformers' own option counts the prompt's too; names could not be taken from there then.
        """
        from transformers import NoRepeatNGramLogitsProcessor

        if not self._no_repeat_ngram_size:
            return []
        ban = NoRepeatNGramLogitsProcessor(self._no_repeat_ngram_size)
        return [lambda ids, scores: ban(ids[:, prompt:], scores)]


def _numbers(_: Tensor, scores: Tensor) -> Tensor:
    """Return the scores of the next token once they are known to be numbers."""
    check_outputs(scores)
    return scores
