"""Weights of single layers turned by an orthogonal matrix, in float64 and in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flexround.structure import output_first
from flexround.transforms.places import Place, offset_of, weight_of


def turn_inputs(module: nn.Module, rotation: Tensor) -> None:
    """Have module take x rotation where it took x."""
    weight = output_first(module, weight_of(module))
    weight.copy_((weight.double() @ rotation.to(weight.device)).to(weight))


def turn_outputs(module: nn.Module, rotation: Tensor) -> None:
    """Have module give y rotation where it gave y."""
    weight, bias = output_first(module, weight_of(module)), getattr(module, "bias", None)
    turned = rotation.to(weight.device)
    weight.copy_((turned.T @ weight.double()).to(weight))
    if bias is not None:
        bias.data.copy_((bias.data.double() @ turned).to(bias))


def turn_heads(place: Place, rotation: Tensor) -> None:
    """Have the source's outputs turned within each head, and what takes them turn them back.

    rotation is [head, head]; attention mixes the values of tokens, never a head's channels.
    """
    size, source = len(rotation), place.source
    values = output_first(source, weight_of(source))
    heads = values[place.rows].double().unflatten(0, (-1, size))  # [heads, head, in]
    values[place.rows] = (rotation.T @ heads).flatten(0, 1).to(values)
    bias = getattr(source, "bias", None)
    if bias is not None:
        own = bias.data[place.rows].double().unflatten(0, (-1, size)) @ rotation
        bias.data[place.rows] = own.flatten().to(bias)
    for layer in place.layers:
        weight = output_first(layer.module, weight_of(layer.module))
        turned = weight.double().unflatten(1, (-1, size)) @ rotation  # [out, heads, head]
        weight.copy_(turned.flatten(1).to(weight))


def absorb(place: Place, name: str) -> None:
    """Move the weight of a norm, called name, into the layers that read it, its bias where it fits.

    A bias goes into theirs where all have one. Otherwise the norm keeps bias / weight, which the
    layers multiply by the weight.

    Raises:
        ValueError: when the norm has to keep the bias of a channel whose weight is zero.
    """
    norm = place.source
    weight, bias = weight_of(norm), getattr(norm, "bias", None)
    offset = offset_of(norm)
    scale = weight.double() + offset
    modules = [layer.module for layer in place.layers]
    if bias is not None and all(getattr(module, "bias", None) is not None for module in modules):
        for module in modules:
            own = output_first(module, weight_of(module)).double() @ bias.data.double()
            module.bias.data.add_(own.to(weight))  # type: ignore[operator]
        bias.data.zero_()
    elif bias is not None:
        if ((scale == 0) & (bias.data != 0)).any():
            raise ValueError(
                f"layer {name}: a channel has weight 0 and a bias that no layer behind it holds; "
                "transform=hadamard is not exact there, give transform=none"
            )
        bias.data.copy_((bias.data.double() / torch.where(scale == 0, 1.0, scale)).to(bias))
    for module in modules:
        matrix = output_first(module, weight_of(module))
        matrix.copy_((matrix.double() * scale).to(matrix))
    weight.fill_(1 - offset)
