"""Layers of a block that are solved at once, on one pass over the calibration set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flexround.calibration.calls import RecordedCalls, inputs_taken
from flexround.models.experts import every_expert
from flexround.structure import Block, Layer


@dataclass(frozen=True)
class Together:
    """Layers that are solved at once.

    Attributes:
        calls: how often each of them is called in a pass, which may end there; empty where that
            differs from pass to pass, as it does with experts.
    """

    layers: Sequence[Layer]
    calls: Mapping[nn.Module, int]


def in_one_pass(block: Block) -> list[Together]:
    """Return all layers of a block as one set."""
    return [Together(block.layers, {})]


def in_order(block: Block, calls: RecordedCalls, device: torch.device) -> list[Together]:
    """Return the layers in sets of those that take the same tensor, in the order they are called.

    Experts work side by side: the first layers of all of them are one set. A layer that is called
    several times is in the set of its first call.
    """
    layers = {layer.module: layer for layer in block.layers}
    with every_expert(block.module):
        taken = inputs_taken(layers, lambda: calls.replay(block.module, torch.arange(1), device))
    first_calls = {module: tensor for module, tensor in reversed(taken)}
    counts = Counter(module for module, _ in taken)
    sets: dict[object, list[Layer]] = {}
    for module in counts:
        layer = layers[module]
        sets.setdefault(_place(layer, first_calls[module]), []).append(layer)
    certain = not any(layer.expert for layer in block.layers)
    return [
        Together(own, {layer.module: counts[layer.module] for layer in own} if certain else {})
        for own in sets.values()
    ]


def _place(layer: Layer, taken: Tensor) -> object:
    """Return what names the set of a layer: the tensor, or its name within one of the experts."""
    if layer.expert is None:
        return id(taken)
    experts, _, own = layer.name.rpartition(".")
    return experts.rpartition(".")[0], own
