"""Room on the device: whether a network and a block at work fit, said before any work.

What is counted is certain to be needed, so that nothing is refused that would fit; what is left,
activations above all, is met where it runs out (flexround.utils.memory).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from flexround.calibration.calls import RecordedCalls
from flexround.models.base import ModelAdapter
from flexround.structure import Block, Layer, output_first
from flexround.utils.memory import free_on

# Bytes of a weight at work: itself in float32 and its quantized value; while it is learned its
# gradient and what the method keeps of it as well.
SOLVED, LEARNED = 8, 16
# Bytes of an element of a Hessian as a solver takes it up: float64's, of the sum and of the mean.
HESSIAN = 16
# Of one size, live at once on a GPU: both streams, the targets, and outputs that are being made, in
# parts and joined.
TOGETHER = 5
SHARE = 0.5  # of what is free on a GPU; the rest is for the activations of a batch


def check_room(adapter: ModelAdapter, per_weight: int, hessians: bool = False) -> None:
    """Check that adapter's device has room for the largest block at work and for the evaluation.

    hessians says that the layers are solved on theirs. Nothing is checked on a CPU, whose memory
    may grow.

    Raises:
        ValueError: says what is free, what is needed, and what would fit.
    """
    free = free_on(adapter.device)
    if free is None:
        return
    there = adapter.device.type
    blocks = {block.name: _needed(block, per_weight, there) for block in adapter.blocks()}
    if hessians:
        for block in adapter.blocks():
            blocks[block.name] += max(map(_hessian, block.layers), default=0)
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


def _hessian(layer: Layer) -> int:
    """Return the bytes that the Hessian of layer takes, [groups, in, in]."""
    row = output_first(layer.module, cast(Tensor, layer.module.weight))[0].numel()
    return HESSIAN * int(getattr(layer.module, "groups", 1)) * row**2


def home_of(adapter: ModelAdapter, calls: RecordedCalls) -> torch.device:
    """Return where the streams of a walk over adapter's blocks lie, which begins with calls.

    Where what is free on the device is not known, auto leaves them where they are.

    Raises:
        ValueError: when they are to lie on a GPU that has no room; says what would fit.
    """
    where, device = calls.cache.where, adapter.device
    calls.cache.check_device(device)
    if device.type == "cpu" or where == "cpu":
        return torch.device("cpu")
    free = free_on(device)
    if free is None:
        return device if where == "cuda" else calls.inputs.device
    work = max(_needed(block, LEARNED, device.type) for block in adapter.blocks())
    streams = streams_take(adapter.widest(calls.inputs), calls)
    if where == "auto":
        return device if streams_fit(streams, work, free) else torch.device("cpu")
    if streams + work > free:
        raise ValueError(
            f"stream_device=cuda: the activations of {len(calls)} calibration samples need "
            f"{streams / 2**30:.2f} GiB on {device} and the block at work {work / 2**30:.2f} GiB, "
            f"and {free / 2**30:.2f} GiB are free; give stream_device=auto or cpu, "
            "stream_dtype=bfloat16, or a smaller num_samples"
        )
    return device


def streams_take(widest: int, calls: RecordedCalls) -> int:
    """Return the bytes that all streams take together which begin with calls.

    widest is how many values of a sample a block passes on at most.
    """
    one = len(calls) * widest * calls.inputs.element_size()
    return TOGETHER * one + calls.per_sample_bytes


def streams_fit(streams: int, work: int, free: int) -> bool:
    """Return whether streams lie well on a GPU beside the block at work; all in bytes."""
    return streams + work <= SHARE * free
