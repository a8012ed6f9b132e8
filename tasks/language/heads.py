"""Heads of networks: what a task puts on top of what all its networks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

POOLER = "pooler"  # of an encoder, under its head: one that only guessed words was made without


def heads_of(network: nn.Module) -> list[str]:
    """Return the names of the modules that make up a transformers network's head, if it has one.

    These are the modules with weights outside of its base model, and poolers. What a language model
    puts out by is no head: none is drawn for a task.
    """
    its: Any = network
    prefix = getattr(network, "base_model_prefix", "")
    if not prefix or its.get_output_embeddings() is not None:
        return []
    found = [name for name, _ in network.named_modules() if name.rpartition(".")[2] == POOLER]
    if not hasattr(network, prefix):  # the base model itself
        return found
    return found + [
        name for name, module in network.named_children()
        if name not in (prefix, *found) and next(module.parameters(), None) is not None
    ]  # fmt: skip


def kind_of(network: nn.Module, kinds: Sequence[str]) -> str:
    """Return which of a task's kinds a transformers network is: causal or encoder.

    Most attentions of transformers say whether a token sees only those before it. A network whose
    none does counts as an encoder, and is padded on the right: that is right for both kinds, as
    long as padding is masked.
    """
    if "encoder" not in kinds:
        return "causal"
    causal = any(getattr(module, "is_causal", False) for module in network.modules())
    return "causal" if "causal" in kinds and causal else "encoder"
