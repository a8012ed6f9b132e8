"""Put quantizers on the layers of a block, and bake them in afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from flexround.grid import Grid, PerChannel, PerGroup, QuantizedTensor
from flexround.quantizers.base import QuantizerFactory, WeightQuantizer
from flexround.ranges import Ranges

QUANTIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class Layer:
    """One layer whose weight is quantized.

    Attributes:
        name: where it lies in the model.
        module: a Linear or a convolution.
        bits: its own bits where they differ from the run's (first and last layer), or None.
        activation: the activation function applied to nothing but its output, or None.
    """

    name: str
    module: nn.Module
    bits: int | None = None
    activation: nn.Module | None = None

    def grid(self, grid: Grid) -> Grid:
        """Return the grid of this layer in a run on grid.

        A layer that keeps its own bits has its groups widened to channels: the group sizes that
        fit the inner layers seldom divide a stem's 27 or 147 weights a channel.
        """
        if self.bits is None:
            return grid
        whole = isinstance(grid.granularity, PerGroup)
        return replace(
            grid, bits=self.bits, granularity=PerChannel() if whole else grid.granularity
        )


def check(layers: Sequence[Layer], grid: Grid) -> None:
    """Check that every layer can be put on grid, before any of them is worked on.

    Raises:
        ValueError: when a weight is not finite, or groups do not divide it; names the layer.
    """
    for layer in layers:
        weight = cast(nn.Parameter, layer.module.weight)
        if not torch.isfinite(weight).all():
            raise ValueError(f"layer {layer.name}: its weight holds values that are not finite")
        try:
            layer.grid(grid).granularity.group(weight)
        except ValueError as error:
            raise ValueError(f"layer {layer.name}: {error}") from error


def attach(
    layers: Sequence[Layer], quantizer: QuantizerFactory, grid: Grid, ranges: Ranges
) -> list[WeightQuantizer]:
    """Parametrize each layer's weight by its own quantizer and return them in order."""
    quantizers = []
    for layer in layers:
        made = quantizer(
            cast(nn.Parameter, layer.module.weight), grid=layer.grid(grid), ranges=ranges
        )
        parametrize.register_parametrization(layer.module, "weight", made)
        quantizers.append(made)
    return quantizers


def freeze(layers: Sequence[Layer]) -> dict[str, QuantizedTensor]:
    """Harden each quantizer, bake its weight into the plain layer and return the integers by name.

    Afterwards every module is of its original class again.
    """
    quantized = {}
    for layer in layers:
        parametrizations = cast(nn.ModuleDict, layer.module.parametrizations)
        stack = cast(parametrize.ParametrizationList, parametrizations["weight"])
        quantizer = cast(WeightQuantizer, stack[0])
        quantizer.harden()
        quantized[layer.name] = quantizer.finalize(stack.original)
        parametrize.remove_parametrizations(layer.module, "weight", leave_parametrized=True)
        cast(nn.Parameter, layer.module.weight).requires_grad_(False)
    return quantized
