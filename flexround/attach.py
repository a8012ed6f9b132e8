"""Put quantizers on the layers of a block, and bake them in afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flexround.grid import Grid, PerChannel, PerGroup, QuantizedTensor
from flexround.quantizers.base import QuantizerFactory, WeightQuantizer
from flexround.ranges import MinMax, Ranges

QUANTIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)
# transformers' Conv1D is a Linear that stores [in, out]; known by name, to import nothing.
TRANSPOSED = "Conv1D"


def is_quantizable(module: nn.Module) -> bool:
    """Return whether module's weight can be quantized."""
    return isinstance(module, QUANTIZABLE) or type(module).__name__ == TRANSPOSED


def output_first(module: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight of module's layout as [out, in, *kernel]."""
    return weight.T if type(module).__name__ == TRANSPOSED else weight


class Transposed(nn.Module):
    """Lets a quantizer see [out, in] where the layer stores [in, out]."""

    def __init__(self, quantizer: WeightQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized weight [in, out]."""
        out: Tensor = self.quantizer(weight.T.contiguous())
        return out.T


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


def check(layers: Sequence[Layer], grid: Grid, quantizer: QuantizerFactory) -> bool:
    """Check that every layer can be put on grid by quantizer, before any of them is worked on.

    Return whether there is anything to learn.

    Raises:
        ValueError: when a weight is not finite, groups do not divide it, or the method is not for
            it; names the layer.
    """
    learns = False
    for layer in layers:
        weight = cast(nn.Parameter, layer.module.weight)
        if not torch.isfinite(weight).all():
            raise ValueError(f"layer {layer.name}: its weight holds values that are not finite")
        try:
            shape = output_first(layer.module, weight).shape
            # A tensor without storage: nothing is computed.
            empty = torch.empty(shape, device="meta")
            made = quantizer(empty, grid=layer.grid(grid), ranges=MinMax())
        except ValueError as error:
            raise ValueError(f"layer {layer.name}: {error}") from error
        learns = learns or bool(made.param_groups(1.0))
    return learns


def attach(
    layers: Sequence[Layer], quantizer: QuantizerFactory, grid: Grid, ranges: Ranges
) -> list[WeightQuantizer]:
    """Parametrize each layer's weight by its own quantizer and return them in order."""
    quantizers = []
    for layer in layers:
        weight = output_first(layer.module, cast(nn.Parameter, layer.module.weight))
        made = quantizer(weight.contiguous(), grid=layer.grid(grid), ranges=ranges)
        turned = type(layer.module).__name__ == TRANSPOSED
        wrapped = Transposed(made) if turned else made
        parametrize.register_parametrization(layer.module, "weight", wrapped)
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
        held = stack[0]
        turned = isinstance(held, Transposed)
        quantizer = cast(WeightQuantizer, held.quantizer if turned else held)
        quantizer.harden()
        weight = (stack.original.T if turned else stack.original).contiguous()
        quantized[layer.name] = quantizer.finalize(weight)
        parametrize.remove_parametrizations(layer.module, "weight", leave_parametrized=True)
        cast(nn.Parameter, layer.module.weight).requires_grad_(False)
    return quantized


@torch.no_grad()
def bake(layer: Layer, integers: QuantizedTensor) -> None:
    """Write integers into the plain layer."""
    weight = cast(nn.Parameter, layer.module.weight)
    output_first(layer.module, weight).copy_(integers.dequantize())
    weight.requires_grad_(False)
