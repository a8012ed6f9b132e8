"""Blocks of a transformer: each of its layers with the weights and activations in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from flexround.calibration.calls import inputs_taken
from flexround.models.experts import Expert, every_expert
from flexround.models.language_activation_sites import sites_of
from flexround.structure import Block, Layer, is_quantizable


def blocks_of(
    model: nn.Module, chain: Mapping[str, nn.Module], run: Callable[[], object]
) -> list[Block]:
    """Return a block for each of model's layers, chain, by name; run calls every layer once."""
    names = {module: name for name, module in model.named_modules()}
    linear = [module for module in model.modules() if is_quantizable(module)]
    with every_expert(model):
        taken = inputs_taken(linear, run)
    blocks = []
    for name, module in chain.items():
        inside = {id(sub) for sub in module.modules()}
        experts = {s: m for m in module.modules() if isinstance(m, Expert) for s in m.modules()}
        here = [(m, tensor) for m, tensor in taken if id(m) in inside]
        order = dict.fromkeys(m for m, _ in here)
        layers = [Layer(names[m], m, expert=experts.get(m)) for m in order]
        blocks.append(Block(name, module, layers, sites=sites_of(here, names)))
    return blocks
