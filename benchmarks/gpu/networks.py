"""Tiny networks with random weights, made in seconds and the same on every device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from flexround.models.base import ModelAdapter
from flexround.models.language_adapter import LanguageAdapter
from flexround.models.vision import VisionAdapter

SAMPLES, TOKENS, IMAGE = 8, 16, 32
Made = tuple[ModelAdapter, Sequence[Any]]


def vision(device: torch.device) -> Made:
    """Return timm's miniature of an EfficientNet with the statistics of random images."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", pretrained=False, num_classes=10)
    images = torch.randn(4 * SAMPLES, 3, IMAGE, IMAGE)
    with torch.no_grad():
        network.train()
        for _ in range(10):
            network(images)  # its batch norms take over what they see
    return VisionAdapter(network.eval(), images[:2], 8, device), [images[:SAMPLES]]


def _language(
    family: str, auto: str, device: torch.device, padded: bool = False, leave: Sequence[str] = ()
) -> Made:
    import transformers

    from tasks.language.tiny_families import VOCABULARY, config_of

    torch.manual_seed(0)
    network = getattr(transformers, auto).from_config(config_of(family))
    batch = {"input_ids": torch.randint(3, VOCABULARY, (SAMPLES, TOKENS))}
    example = {"input_ids": torch.arange(8).view(2, 4)}
    if padded:
        lengths = torch.arange(SAMPLES).remainder(TOKENS // 2) + TOKENS // 2
        batch["attention_mask"] = (torch.arange(TOKENS) < lengths[:, None]).long()
        example["attention_mask"] = torch.ones(2, 4, dtype=torch.long)
    return LanguageAdapter(network, example, device, leave), [batch]


NETWORKS: dict[str, Callable[[torch.device], Made]] = {
    "vision": vision,
    "llama": lambda device: _language("llama", "AutoModelForCausalLM", device),
    "bert, padded": lambda device: _language(
        "bert", "AutoModelForSequenceClassification", device, padded=True
    ),
    "mixtral": lambda device: _language(
        "mixtral", "AutoModelForCausalLM", device, leave=["mlp.gate"]
    ),
}
