"""Places where scales fold into a network: the output channels of a source, the layers they reach.

For positive s, (X diag(1/s)) (diag(s) W^T) = X W^T: what is taken from the outputs of a norm or a
linear layer is given to the layers behind it (SmoothQuant, arXiv 2211.10438, eq. 3; AWQ, arXiv
2306.00978, eq. 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from flexround.structure import Block, Layer, is_quantizable, output_first


@dataclass(frozen=True)
class Place:
    """Outputs of a source that layers take.

    Attributes:
        name: of the source in the model.
        source: a norm, or a linear layer.
        rows: which of the source's outputs, [channels].
        layers: what takes them.
        index: which of the channels each input of the layers is, [in]: several inputs share one
            where query heads share a value head.
        norm: whether the source is a norm.
    """

    name: str
    source: nn.Module
    rows: Tensor
    layers: Sequence[Layer]
    index: Tensor
    norm: bool


@contextmanager
def restoring(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Give tensors the values again that they had."""
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        for tensor, values in kept:
            tensor.data.copy_(values)


@torch.no_grad()
def fold(place: Place, scales: Tensor) -> None:
    """Divide the source's outputs by scales [channels] and multiply the layers' weights by them."""
    scale_source(place, scales)
    for layer in place.layers:
        weight = weight_of(layer.module)
        output_first(layer.module, weight).mul_(scales[place.index].to(weight))


def scale_source(place: Place, scales: Tensor) -> None:
    """Divide the outputs of place's source by scales [channels], in place."""
    source, weight = place.source, weight_of(place.source)
    scales = scales.to(weight)
    if place.norm:
        offset = offset_of(source)
        weight.copy_((weight + offset) / scales - offset)
    else:
        rows = output_first(source, weight)
        rows[place.rows] = rows[place.rows] / scales[:, None]
    bias = getattr(source, "bias", None)
    if bias is not None:
        bias[place.rows] = bias[place.rows] / scales


def offset_of(norm: nn.Module) -> float:
    """Return what norm adds to its weight before it multiplies: 1 in Gemma, else 0."""
    weight = weight_of(norm)
    kept = weight.clone()
    weight.zero_()
    probe = torch.linspace(-1, 1, weight.numel(), device=weight.device, dtype=weight.dtype)
    bias = getattr(norm, "bias", None)
    out = norm(probe) - (0 if bias is None else bias)
    weight.copy_(kept)
    return 1.0 if out.abs().max() > 1e-3 else 0.0


def is_norm(module: nn.Module) -> bool:
    """Return whether module has one weight for each channel, as norms have, and no parts."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 1 and not list(module.children())


def weight_of(module: nn.Module) -> Tensor:
    """Return the weight of module as it stores it, without a graph."""
    return cast(nn.Parameter, module.weight).data


def check_covered(block: Block, places: Sequence[Place], width: int, name: str) -> None:
    """Check that every layer of block that reads the stream, width wide, is in one of places.

    name is the transform's.

    Raises:
        ValueError: names the first layer that is in none.
    """
    found = {layer.name for place in places for layer in place.layers}
    for layer in block.layers:
        read = not is_quantizable(layer.module) or _into(layer.module) == width
        if read and layer.name not in found:
            raise ValueError(
                f"layer {layer.name}: transform={name} finds no norm or layer in front of it that "
                "scales fold into exactly (a norm that feeds the residual stream, a router or what "
                "model.leave names as well, experts, or a norm behind the layers); give "
                "transform=none"
            )


def _into(module: nn.Module) -> int:
    return output_first(module, weight_of(module)).shape[1]
