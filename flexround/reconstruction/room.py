"""Room on the device: whether a network and a block at work fit, said before any work.

What is counted is certain to be needed, so that nothing is refused that would fit; what is left,
activations above all, is met where it runs out (flexround.utils.memory).
"""

from __future__ import annotations

from typing import cast

from torch import Tensor

from flexround.models.base import ModelAdapter
from flexround.structure import Block
from flexround.utils.memory import free_on

# Bytes of a weight at work: itself in float32 and its quantized value; while it is learned its
# gradient and what the method keeps of it as well.
SOLVED, LEARNED = 8, 16


def check_room(adapter: ModelAdapter, per_weight: int) -> None:
    """Check that adapter's device has room for the largest block at work and for the evaluation.

    Nothing is checked on a CPU, whose memory may grow.

    Raises:
        ValueError: says what is free, what is needed, and what would fit.
    """
    free = free_on(adapter.device)
    if free is None:
        return
    there = adapter.device.type
    blocks = {block.name: _needed(block, per_weight, there) for block in adapter.blocks()}
    largest = max(blocks, key=lambda name: blocks[name])
    resident = [p for p in adapter.model.parameters() if not p.is_meta]
    whole = sum(p.nbytes for p in resident if p.device.type != there)
    here = f"{free / 2**30:.2f} GiB are free on {adapter.device}"
    if blocks[largest] > free:
        raise ValueError(
            f"{here}, and block {largest} at work needs {blocks[largest] / 2**30:.2f} GiB at "
            "least; give a GPU with more memory, or device=cpu"
        )
    if whole > free:
        raise ValueError(
            f"{here}, and the network that is evaluated needs {whole / 2**30:.2f} GiB at least; "
            "give offload=true (one block at a time lies there), a GPU with more memory, or "
            "device=cpu"
        )


def _needed(block: Block, per_weight: int, there: str) -> int:
    """Return the bytes that block needs at work, besides those that are there already."""
    weights = [cast(Tensor, layer.module.weight) for layer in block.layers]
    return sum(w.numel() * per_weight - w.nbytes * (w.device.type == there) for w in weights)
