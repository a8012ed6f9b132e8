"""Blocks that are timed and weighed: their networks' shapes with random weights, and their size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.blocks import CASES, Case, language
from benchmarks.reconstruction import METHODS
from flexround.models.base import ModelAdapter
from flexround.quantizers.base import QuantizerFactory
from flexround.quantizers.lrq import LRQ

GIB = 2**30
# Bytes a weight of the method that holds most: weight, weight's gradient, quantized weight, what
# the backward pass needs, the parameter with its gradient and Adam's two moments, a copy to sort.
BYTES_A_WEIGHT = 40
TOKENS, BATCH = 2048, 8


@dataclass(frozen=True)
class Shape:
    """A transformer block's shape: that of LLaMA, arXiv 2307.09288 and 2407.21783.

    Attributes:
        heads: of queries; kv_heads of keys and values.
        samples: of the calibration set, of tokens each.
    """

    name: str
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    samples: int
    tokens: int
    batch_size: int

    @property
    def weights(self) -> int:
        """The weights of the block's linear layers."""
        kv = self.hidden * self.kv_heads // self.heads
        return self.hidden * (2 * self.hidden + 2 * kv + 3 * self.inner)

    def needs_gib(self, batch_size: int | None = None) -> float:
        """Return about how much memory of the card an iteration takes, in GiB."""
        tokens = (self.batch_size if batch_size is None else batch_size) * self.tokens
        activations = 4 * tokens * (20 * self.hidden + 6 * self.inner)
        return (BYTES_A_WEIGHT * self.weights + activations) / GIB

    def config(self) -> Any:
        """Return the configuration of a model of one such block."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=128, hidden_size=self.hidden, intermediate_size=self.inner,
            num_hidden_layers=1, num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads, max_position_embeddings=self.tokens,
        )  # fmt: skip

    def make(self, device: torch.device) -> tuple[ModelAdapter, Sequence[Any]]:
        """Return (adapter, calibration batches) for device."""
        auto = "AutoModelForCausalLM"
        return language(auto, self.config(), self.samples, self.tokens, device)

    def case(self) -> Case:
        """Return it as a block to time."""
        return Case(self.name, self.make, 0, self.batch_size)

    def refusal(self, free_gib: float) -> str | None:
        """Return why it does not fit into so much memory, and what would; None where it does."""
        needs, batch_size = self.needs_gib(), self.batch_size
        if needs <= free_gib:
            return None
        line = f"needs about {needs:.1f} GiB, the card has {free_gib:.1f} free"
        while batch_size > 1 and self.needs_gib(batch_size) > free_gib:
            batch_size //= 2
        if self.needs_gib(batch_size) > free_gib:
            return f"{line}; one sample needs {self.needs_gib(1):.1f}: take a larger card"
        return f"{line}; a batch of {batch_size} would fit"


def llama2_7b() -> Shape:
    """Return LLaMA-2-7B's block."""
    return Shape("LLaMA-2-7B's shape, 8 x 2048 tokens", 4096, 11008, 32, 32, BATCH, TOKENS, BATCH)


def llama31_8b(tiny: bool, samples: int = BATCH) -> Shape:
    """Return Llama-3.1-8B's block with so many calibration samples; of tiny ones a miniature."""
    if tiny:
        return Shape("Llama-3.1-8B's shape, tiny", 64, 224, 4, 2, 4, 16, 2)
    name = "Llama-3.1-8B's shape, 8 x 2048 tokens"
    return Shape(name, 4096, 14336, 32, 8, samples, TOKENS, BATCH)


def small_cases(tiny: bool) -> list[Case]:
    """Return the blocks that fit any card."""
    wanted = ("Mobile",) if tiny else ("ResNet-18, last", "Mobile", "BERT", "SmolLM2")
    return [case for case in CASES if case.name.startswith(wanted)]


def methods_for(vision: bool, shape: Shape | None) -> dict[str, QuantizerFactory]:
    """Return the methods that are timed on a block; of a large one LRQ has the paper's rank."""
    found = {name: method for name, method in METHODS.items() if name != "lrq" or not vision}
    if shape is not None:
        rank = min(1024, shape.hidden // 4)
        found["lrq"] = partial(LRQ, rank=rank, rank_rule="fixed", seed=0)
    return found
