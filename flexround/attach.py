"""Quantizers put on the layers of a block, and baked in afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flexround.grid import Grid, QuantizedTensor
from flexround.quantizers.base import QuantizerFactory, WeightQuantizer
from flexround.ranges import MinMax, Ranges
from flexround.structure import Layer, check_layer, is_transposed, output_first


class Transposed(nn.Module):
    """Lets a quantizer see [out, in] where the layer stores [in, out]."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized weight [in, out]."""
        out: Tensor = self.quantizer(weight.T.contiguous())
        return out.T


def made_for(shape: Sequence[int], grid: Grid, quantizer: QuantizerFactory) -> WeightQuantizer:
    """Return the method's quantizer of a weight of shape without storage: nothing is computed.

    Raises:
        ValueError: when the method is not for it, or its constructor asks for a number.
    """
    try:
        return quantizer(torch.empty(tuple(shape), device="meta"), grid=grid, ranges=MinMax())
    except (RuntimeError, NotImplementedError) as error:
        told = str(error).strip().partition("\n")[0]
        raise ValueError(
            "the method's constructor fails on a weight without storage (torch's meta device), "
            f"which its options are checked with: {told}; it may compute tensors, and branch on "
            "none of their values"
        ) from error


def check_weights(layers: Sequence[Layer], grid: Grid, quantizer: QuantizerFactory) -> bool:
    """Check that every layer can be put on grid by quantizer, before any of them is worked on.

    Return whether there is anything to learn.

    Raises:
        ValueError: when a layer is of no known kind, a weight is not finite, groups do not divide
            it, or the method is not for it; names the layer.
    """
    learns = False
    for layer in layers:
        check_layer(layer.name, layer.module)
        weight = cast(nn.Parameter, layer.module.weight)
        if not weight.is_meta and not torch.isfinite(weight).all():
            raise ValueError(f"layer {layer.name}: its weight holds values that are not finite")
        try:
            shape = output_first(layer.module, weight).shape
            made = made_for(shape, layer.grid(grid), quantizer)
        except ValueError as error:
            raise ValueError(f"layer {layer.name}: {error}") from error
        learns = learns or bool(made.param_groups(1.0))
    return learns


def attach(
    layers: Sequence[Layer],
    quantizer: QuantizerFactory,
    grid: Grid,
    ranges: Ranges,
    own_ranges: Mapping[str, Ranges] = MappingProxyType({}),
) -> list[WeightQuantizer]:
    """Parametrize each layer's weight by its own quantizer and return them in order.

    own_ranges are the ranges, by name, of layers that have others than ranges.
    """
    quantizers = []
    for layer in layers:
        layer.clip(layer.grid(grid))
        weight = output_first(layer.module, cast(nn.Parameter, layer.module.weight))
        own = own_ranges.get(layer.name, ranges)
        made = quantizer(weight.contiguous(), grid=layer.grid(grid), ranges=own)
        turned = is_transposed(layer.module)
        wrapped = Transposed(made) if turned else made
        parametrize.register_parametrization(layer.module, "weight", wrapped)
        quantizers.append(made)
    return quantizers


def freeze(layers: Sequence[Layer]) -> dict[str, QuantizedTensor]:
    """Harden each quantizer, bake its weight into the plain layer and return the integers by name.

    Afterwards every module is of its original class again.

    Raises:
        ValueError: when a method's integers are none of its grid, or not what it bakes in.
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
        found = quantizer.finalize(weight)
        parametrize.remove_parametrizations(layer.module, "weight", leave_parametrized=True)
        baked = cast(nn.Parameter, layer.module.weight).requires_grad_(False)
        try:
            found.check()
            _check_baked(output_first(layer.module, baked), found)
        except ValueError as error:
            told = f"layer {layer.name}: {type(quantizer).__name__} gave {error}"
            raise ValueError(told) from error
        quantized[layer.name] = found
    return quantized


def _check_baked(weight: Tensor, found: QuantizedTensor) -> None:
    """Check that weight is what found stands for, but for its type's last bits.

    Raises:
        ValueError: when it is not.
    """
    whole, group = found.dequantize().to(weight.dtype), found.grid.granularity.group
    room = 2 * torch.finfo(weight.dtype).eps * group(whole).abs() + 0.01 * found.scale.abs()
    # What is not finite is no method's fault: the unit's error tells it.
    if (group(weight - whole).abs() > room).any():
        raise ValueError(
            "a weight that is not on its grid; once `self.hard` is true, forward has to round to "
            "whole codes, and the same ones at every call"
        )


@torch.no_grad()
def bake(layer: Layer, integers: QuantizedTensor) -> None:
    """Write integers into the plain layer."""
    weight = cast(nn.Parameter, layer.module.weight)
    output_first(layer.module, weight).copy_(integers.dequantize())
    weight.requires_grad_(False)
