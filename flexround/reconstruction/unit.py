"""Unit of reconstruction: a block or one layer, and the loss of its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from flexround.calibration.activation_cache import ActivationCache, moved
from flexround.structure import Block, Layer

PART = 64  # samples that pass an activation function at once

Loss = Literal["squared", "relative", "trimmed"]
NORM_EPS = 1e-6  # as RMSNorm's: below a root mean square of 1e-3 a relative error no longer grows
TRIMMED = 1000  # of so many values of a mini-batch's output the trimmed loss leaves out one


def reconstruction_loss(
    output: Tensor,
    target: Tensor,
    channel_dim: int,
    mask: Tensor | None = None,
    power: float = 2.0,
    kind: Loss = "squared",
) -> Tensor:
    """Return |error|^power summed over channels, averaged over everything else.

    mask has the shape that is left without the channels and tells which positions count, none of
    the padding; on the CPU, so that no GPU is asked how many they are. AdaRound's lambda = 0.01 is
    tied to this reduction, the power 2 and the plain error (kind squared). The others keep a few
    tokens with huge activations from being all that is learned for: relative divides each
    position's error by the root mean square of its target, as the norm behind a residual stream
    does, or of its output where that is larger, so that none counts for more than four times the
    channels; trimmed leaves out the largest errors, SignRound v2's loss at few bits (auto-round
    0.16.1).
    """
    error = output - target
    if kind == "relative":
        square = torch.maximum(*(x.detach().square().mean(dim=channel_dim, keepdim=True)
                                 for x in (target, output)))  # fmt: skip
        error = error / (square + NORM_EPS).sqrt()
    elif kind == "trimmed":
        error = _without_largest(error, channel_dim, mask)
    error = (error.square() if power == 2 else error.abs().pow(power)).sum(dim=channel_dim)
    if mask is None:
        return error.mean()
    places = mask.flatten().nonzero().squeeze(1)
    return error.flatten().index_select(0, moved(places, error.device)).mean()


def _without_largest(error: Tensor, channel_dim: int, mask: Tensor | None) -> Tensor:
    """Return error with 0 for the largest thousandth of what counts of it, one value at least."""
    size, count = error.detach().abs(), error.numel()
    if mask is not None:
        counts = mask.unsqueeze(channel_dim)
        count = int(mask.sum()) * error.shape[channel_dim]
        size = size * moved(counts, error.device)
    largest = size.flatten().topk(max(1, count // TRIMMED), sorted=False).indices
    return error.flatten().index_fill(0, largest, 0).view_as(error)


@dataclass(frozen=True)
class Unit:
    """What is optimised at once.

    Attributes:
        activation: the activation function that belongs to the module's output, or None.
        channel_dim: the axis of the output that the loss sums over.
    """

    name: str
    module: nn.Module
    layers: Sequence[Layer]
    activation: nn.Module | None
    channel_dim: int

    def output(self, raw: Tensor) -> Tensor:
        """Return the module's output after the activation function that belongs to it."""
        return raw if self.activation is None else self.activation(raw)

    def all_outputs(self, raw: Tensor, cache: ActivationCache, device: torch.device) -> Tensor:
        """Return the same for all samples of raw [samples, ...], made on device, held by cache."""
        if self.activation is None:
            return raw
        parts = (self.output(part.to(device)).to(raw.device) for part in raw.split(PART))
        return cache.store(parts)


def units_of(block: Block, kind: Literal["block", "layer"]) -> list[Unit]:
    """Return a block's units in execution order: itself, or each of its layers."""
    if kind == "block":
        return [Unit(block.name, block.module, block.layers, block.activation, block.channel_dim)]
    return [
        Unit(layer.name, layer.module, [layer], layer.activation, _channel_dim(layer.module))
        for layer in block.layers
    ]


def _channel_dim(layer: nn.Module) -> int:
    """Return the axis of a layer's output channels."""
    return 1 if isinstance(layer, nn.Conv1d | nn.Conv2d) else -1
