"""Blocks of real networks' shapes with random weights, as units that the loop can work on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flexround.calibration.calls import RecordedCalls
from flexround.models.base import ModelAdapter
from flexround.models.language_adapter import LanguageAdapter
from flexround.models.vision import VisionAdapter
from flexround.reconstruction.unit import Unit, units_of

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A block to time.

    Attributes:
        name: what the table calls it.
        make: returns (adapter, calibration batches) for a device; the same every time.
        block: which of the adapter's blocks.
        batch_size: samples an iteration.
    """

    name: str
    make: Callable[[torch.device], tuple[ModelAdapter, Sequence[Any]]]
    block: int
    batch_size: int

    @property
    def vision(self) -> bool:
        """Whether it is an image model's block."""
        return self.name.startswith(("ResNet", "Mobile"))


def _vision(name: str, size: int, device: torch.device) -> tuple[ModelAdapter, Sequence[Any]]:
    import torchvision

    torch.manual_seed(0)
    model, images = torchvision.models.get_model(name), torch.randn(32, 3, size, size)
    # Random weights without statistics take the signal to 1e-15 of itself in a dozen layers:
    # Adam's averages would be subnormal numbers, which take ten times as long.
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    return VisionAdapter(model, torch.randn(2, 3, 64, 64), 8, device), [images]


def language(
    auto: str, config: Any, samples: int, tokens: int, device: torch.device
) -> tuple[ModelAdapter, list[Any]]:
    """Return the adapter of a language model of random weights, and random calibration tokens."""
    import transformers

    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, auto).from_config(config)
    example = {"input_ids": torch.arange(8).view(2, 4)}
    batch = {"input_ids": torch.randint(0, 100, (samples, tokens))}
    return LanguageAdapter(model, example, device), [batch]


def _smollm2(device: torch.device) -> tuple[ModelAdapter, Sequence[Any]]:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=128, hidden_size=576, intermediate_size=1536, num_hidden_layers=1,
        num_attention_heads=9, num_key_value_heads=3,
    )  # fmt: skip
    return language("AutoModelForCausalLM", config, 4, 512, device)


def _bert_base(device: torch.device) -> tuple[ModelAdapter, Sequence[Any]]:
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=128, num_hidden_layers=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return language("AutoModelForSequenceClassification", config, 32, 128, device)


def reached(case: Case, device: torch.device = CPU) -> tuple[ModelAdapter, Unit, RecordedCalls]:
    """Return the case's adapter, its block as a unit, and the calls over the calibration set.

    The block lies on device.
    """
    adapter, calibration = case.make(device)
    blocks, calls = adapter.blocks(), adapter.record_calls(calibration)
    for index in range(case.block):
        outputs = calls.replay_all(blocks[index].module, case.batch_size, device)
        calls = calls.with_inputs(adapter.advance(index, outputs))
    block = blocks[case.block]
    block.module.to(device)
    (unit,) = units_of(block, "block")
    return adapter, unit, calls


CASES = (
    Case("ResNet-18, first stage, 32 x 28 x 28", lambda d: _vision("resnet18", 112, d), 1, 32),
    Case("ResNet-18, last stage, 32 x 7 x 7", lambda d: _vision("resnet18", 224, d), 8, 32),
    Case("MobileNetV2, features.12, 32 x 7 x 7", lambda d: _vision("mobilenet_v2", 112, d), 12, 32),
    Case("BERT-base layer, 32 x 128 tokens", _bert_base, 0, 32),
    Case("SmolLM2-135M layer, 2 x 512 tokens", _smollm2, 0, 2),
)
