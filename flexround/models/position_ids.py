"""Positions of tokens under padding on the left, where a text's own first token is not at 0.

Most of the Hugging Face library's models number a batch's columns. A text that is padded on the
left then has other positions, and other logits, than the same text alone.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

# RoBERTa and its kin number what is no padding by themselves, and do not begin at 0.
OWN = "create_position_ids_from_input_ids"


def with_position_ids(model: nn.Module, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return batch, with position_ids [batch, tokens] where a text is padded on the left.

    They count a text's own tokens from 0, as the mask has them; padding is at 0 too.
    """
    mask = batch.get("attention_mask")
    if torch.compiler.is_exporting() or mask is None or "position_ids" in batch:
        return batch
    if mask.dim() != 2 or bool(mask[:, 0].all()) or not takes_position_ids(model):
        return batch
    return {**batch, "position_ids": (mask.long().cumsum(1) - 1).clamp_min(0)}


def takes_position_ids(model: nn.Module) -> bool:
    """Return whether model can be told positions that count from 0."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    own = any(hasattr(module, OWN) for module in model.modules())
    return not own and not hasattr(sys.modules[type(model).__module__], OWN)
