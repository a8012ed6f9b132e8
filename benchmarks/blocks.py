"""Blocks of real networks' shapes with random weights, as units that the loop can work on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flexround.blocks import Block, Calls
from flexround.models.base import ModelAdapter
from flexround.models.language import LanguageAdapter
from flexround.models.vision import VisionAdapter

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A block to time.

    Attributes:
        name: what the table calls it.
        make: returns (adapter, calibration batches); the same every time.
        block: which of the adapter's blocks.
        batch_size: samples an iteration.
    """

    name: str
    make: Callable[[], tuple[ModelAdapter, Sequence[Any]]]
    block: int
    batch_size: int


def _resnet18(size: int) -> tuple[ModelAdapter, Sequence[Any]]:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    return VisionAdapter(model, torch.randn(2, 3, 64, 64), 8, CPU), [torch.randn(32, 3, size, size)]


def _smollm2() -> tuple[ModelAdapter, Sequence[Any]]:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=576, intermediate_size=1536, num_hidden_layers=1,
        num_attention_heads=9, num_key_value_heads=3,
    )  # fmt: skip
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    example = {"input_ids": torch.arange(8).view(2, 4)}
    tokens = torch.randint(0, 100, (4, 512))
    return LanguageAdapter(model, example, CPU), [{"input_ids": tokens}]


def _mobilenet_v2() -> tuple[ModelAdapter, Sequence[Any]]:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2()
    images = torch.randn(32, 3, 112, 112)
    return VisionAdapter(model, torch.randn(2, 3, 64, 64), 8, CPU), [images]


def _bert_base() -> tuple[ModelAdapter, Sequence[Any]]:
    from transformers import AutoModelForSequenceClassification, BertConfig

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=128, num_hidden_layers=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model: nn.Module = AutoModelForSequenceClassification.from_config(config)
    example = {"input_ids": torch.arange(8).view(2, 4)}
    tokens = torch.randint(0, 100, (32, 128))
    return LanguageAdapter(model, example, CPU), [{"input_ids": tokens}]


def reached(case: Case) -> tuple[ModelAdapter, Block, Calls]:
    """Return the case's adapter, its block, and the calls of the block over the calibration set."""
    adapter, calibration = case.make()
    blocks, calls = adapter.blocks(), adapter.capture(calibration)
    for index in range(case.block):
        outputs = calls.run_all(blocks[index].module, case.batch_size, CPU)
        calls = calls.with_inputs(adapter.advance(index, outputs))
    return adapter, blocks[case.block], calls


CASES = (
    Case("ResNet-18, first stage, 32 x 28 x 28", lambda: _resnet18(112), 1, 32),
    Case("ResNet-18, last stage, 32 x 7 x 7", lambda: _resnet18(224), 8, 32),
    Case("MobileNetV2, features.12, 32 x 7 x 7", _mobilenet_v2, 12, 32),
    Case("BERT-base layer, 32 x 128 tokens", _bert_base, 0, 32),
    Case("SmolLM2-135M layer, 2 x 512 tokens", _smollm2, 0, 2),
)
