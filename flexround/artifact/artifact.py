"""Artifact: a quantized model as integer codes packed to their bits, and all that is not quantized.

`python artifact.py eval PATH` rebuilds the model and measures it again, `inspect` lists
what the file holds, `export` writes it for another program.

file_format.py describes the file, writes it and reads it. Library: `take` what the loop returned
and `restore` it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from flexround.activations.hooks import Activations
from flexround.artifact.activation_ranges import StoredActivation, StoredSite
from flexround.artifact.bit_packing import packed_bytes
from flexround.attach import bake
from flexround.grid import QuantizedTensor
from flexround.models.base import ModelAdapter
from flexround.ranges import MinMax
from flexround.structure import Layer, output_first


@dataclass(frozen=True)
class Size:
    """What a layer takes: weights, bytes of codes, scales and zero points together."""

    weights: int
    bytes: int

    @property
    def bits(self) -> float:
        """Effective bits a weight."""
        return 8 * self.bytes / self.weights

    @property
    def share(self) -> float:
        """Bytes as a share of half precision's."""
        return self.bytes / (2 * self.weights)

    def __add__(self, other: Size) -> Size:
        return Size(self.weights + other.weights, self.bytes + other.bytes)


def size_of(layer: QuantizedTensor) -> Size:
    """Return what a layer takes in an artifact."""
    bits, count = layer.grid.bits, layer.codes.numel()
    zero_points = 0 if layer.grid.symmetric else packed_bytes(layer.scale.numel(), bits)
    powers = layer.grid.levels is not None and layer.grid.levels.powers
    scales = layer.scale.numel() if powers else layer.scale.nbytes
    return Size(count, packed_bytes(count, bits) + scales + zero_points)


@dataclass(frozen=True)
class Artifact:
    """A quantized model, on the CPU.

    Attributes:
        layers: the integers of each quantized weight, by the layer's name.
        dtypes: what each weight was stored in by the model, such as float32.
        sites: the activations' quantizers by name.
        plain: every other parameter and buffer, by its name in the model.
        facts: what else there is to say, as JSON values.
    """

    layers: Mapping[str, QuantizedTensor]
    dtypes: Mapping[str, str]
    sites: Mapping[str, StoredSite]
    plain: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def restore(self, adapter: ModelAdapter) -> None:
        """Put everything into adapter's model, in place; its activations are quantized then.

        Raises:
            ValueError: when the model is another one.
        """
        layers = adapter.layers()
        _same("layer", {n: list(q.codes.shape) for n, q in self.layers.items()},
              {n: list(_weight(layer).shape) for n, layer in layers.items()})  # fmt: skip
        stored = adapter.model.state_dict()
        plain = _plain(adapter.model, layers)
        # What the network makes by itself may differ between versions of its library.
        plain = {n: tensor for n, tensor in plain.items() if n in stored or n in self.plain}
        _same("tensor", {n: list(t.shape) for n, t in self.plain.items()},
              {n: list(t.shape) for n, t in plain.items()})  # fmt: skip
        for name, tensor in plain.items():
            own = self.plain[name].dtype
            if own != tensor.dtype and not (own.is_floating_point and tensor.is_floating_point()):
                raise ValueError(f"tensor {name} is {own} in it and {tensor.dtype} in the network")
        for name, layer in layers.items():
            weight = cast(nn.Parameter, layer.module.weight)
            weight.data = weight.data.to(getattr(torch, self.dtypes[name]))
            bake(layer, self.layers[name])
        for name, tensor in plain.items():
            tensor.data = self.plain[name].to(tensor.device)
        if self.sites:
            places = [site for block in adapter.blocks() for site in block.sites]
            activation = StoredActivation.on(self.sites, places, adapter.device)
            draws = torch.Generator(adapter.device)
            adapter.activations = Activations(adapter.blocks(), activation, MinMax(), draws)
            adapter.activations.leave_on()


def take(
    adapter: ModelAdapter, integers: Mapping[str, QuantizedTensor], facts: Mapping[str, Any]
) -> Artifact:
    """Return adapter's quantized model with the integers that the loop returned."""
    layers = adapter.layers()
    assert layers.keys() == integers.keys(), "the loop quantizes every layer"
    found = adapter.activations.quantizers() if adapter.activations is not None else []
    sites = {quantizer.name: StoredSite.of(quantizer) for quantizer in found}
    assert len(sites) == len(found), "every site has a name of its own"
    plain = _plain(adapter.model, layers)
    plain |= {name: tensor for name, tensor in adapter.state() if name in plain}  # offloaded too
    return Artifact(
        {name: q.on(torch.device("cpu")) for name, q in integers.items()},
        {name: _name(_weight(layer).dtype) for name, layer in layers.items()},
        sites,
        {name: tensor.detach().cpu() for name, tensor in plain.items()},
        facts,
    )


def _weight(layer: Layer) -> Tensor:
    return output_first(layer.module, cast(nn.Parameter, layer.module.weight))


def _plain(model: nn.Module, layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """Return what of the model counts and is not quantized; what is shared, once.

    Of the buffers that the model can make again only those of real numbers are kept: a rotary
    embedding's frequencies may have been rounded with the weights.
    """
    stored = model.state_dict().keys()
    buffers = {
        name: buffer
        for name, buffer in model.named_buffers()
        if name in stored or buffer.is_floating_point()
    }
    quantized = {f"{name}.weight" for name in layers}
    found = dict(model.named_parameters()) | buffers
    return {name: tensor for name, tensor in found.items() if name not in quantized}


def _same(what: str, there: Mapping[str, list[int]], here: Mapping[str, list[int]]) -> None:
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise ValueError(
                f"the artifact is another model's: {what} {name} is {there.get(name, 'absent')} "
                f"in it and {here.get(name, 'absent')} in the network"
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
