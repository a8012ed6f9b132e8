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

    They count a text's own tokens from 0, as the mask has them; padding is at 0 too. A graph that
    is exported always has them: the numbers of columns where no text is padded so.
    """
    mask = batch.get("attention_mask")
    if mask is None or mask.dim() != 2 or "position_ids" in batch:
        return batch
    exporting = torch.compiler.is_exporting()  # for batches of which this is only an example
    if not exporting and bool(mask[:, 0].all()):
        return batch
    if not takes_position_ids(model):
        return batch
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    if exporting:
        columns = torch.arange(mask.shape[1], device=mask.device).expand_as(positions)
        positions = torch.where(mask[:, 0].bool().all(), columns, positions)
    return {**batch, "position_ids": positions}


def takes_position_ids(model: nn.Module) -> bool:
    """Return whether model can be told positions that count from 0."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    own = any(hasattr(module, OWN) for module in model.modules())
    return not own and not hasattr(sys.modules[type(model).__module__], OWN)
