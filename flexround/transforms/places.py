"""Places where scales fold into a network: the output channels of a source, the layers they reach.

For positive s, (X diag(1/s)) (diag(s) W^T) = X W^T: what is taken from the outputs of a norm or a
linear layer is given to the layers behind it (SmoothQuant, arXiv 2211.10438, eq. 3; AWQ, arXiv
2306.00978, eq. 4). Which outputs reach which layers is found by trying, not by names: scales are
folded in, and the block has to compute what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from flexround.structure import Block, Layer, is_quantizable, output_first

Run = Callable[[], Tensor]  # a block's output on a calibration sample, [1, tokens, hidden]

# Mean over tokens of |change of a block's output| / |what the block adds to the stream|. A wrong
# place changes it by a tenth and more, rounding in float32 by 1e-6 and less.
EXACT = 1e-3


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


def find_places(block: Block, names: dict[nn.Module, str], heads: Heads, run: Run) -> list[Place]:
    """Return the places of a block, norms first; run computes its output."""
    seen = _look(block, run)
    trial = _Trial(run, seen.output, seen.inputs)
    found = []
    for norm, layers in seen.read_norms():
        channels = torch.arange(weight_of(norm).numel(), device=weight_of(norm).device)
        place = Place(names[norm], norm, channels, layers, channels, norm=True)
        if trial.is_exact(place):
            found.append(place)
    behind_norms = {layer.name for place in found for layer in place.layers}
    for at, layer in enumerate(seen.order):
        if layer.name in behind_norms:
            continue
        together = [one for one in seen.order if seen.takes(one) == seen.takes(layer)]
        if len(together) > 1:
            continue  # no network of ours has a linear layer in front of several
        place_or_none = _pair(layer, seen.order[:at], names, heads, trial)
        if place_or_none is not None:
            found.append(place_or_none)
    return found


@dataclass(frozen=True)
class Heads:
    """The attention heads of a network: queries, those that keys and values have, their width."""

    queries: int
    values: int
    width: int

    @classmethod
    def of(cls, config: Any) -> Heads:
        """Return the heads that a configuration of transformers states."""
        queries = getattr(config, "num_attention_heads", None) or config.num_heads
        values = getattr(config, "num_key_value_heads", None) or queries
        width = getattr(config, "head_dim", None) or config.hidden_size // queries
        return cls(int(queries), int(values), int(width))

    def index(self, device: torch.device) -> Tensor:
        """Return which value channel each channel of the heads' outputs comes from."""
        head = torch.arange(self.queries, device=device) // (self.queries // self.values)
        return (head[:, None] * self.width + torch.arange(self.width, device=device)).flatten()


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


def _pair(
    layer: Layer, before: Sequence[Layer], names: dict[nn.Module, str], heads: Heads, trial: _Trial
) -> Place | None:
    """Return the place whose source is one of the layers before, the nearest first."""
    weight = output_first(layer.module, weight_of(layer.module))
    into, device = weight.shape[1], weight.device
    indices = [torch.arange(into, device=device)]
    if heads.values < heads.queries and into == heads.queries * heads.width:
        indices.append(heads.index(device))
    for source in reversed(before):
        outputs = len(output_first(source.module, weight_of(source.module)))
        for index in indices:
            channels = int(index.max()) + 1
            if channels > outputs:
                continue
            # The values are the last of query, key and value in one, up behind gate.
            rows = torch.arange(outputs - channels, outputs, device=device)
            place = Place(source.name, source.module, rows, [layer], index, norm=False)
            if trial.is_exact(place):
                return place
    return None


Tag = tuple[int, torch.Size]  # tells a tensor from the others that live


@dataclass(frozen=True)
class _Seen:
    """What a pass over a block shows.

    Attributes:
        order: its layers as they are called, those of experts aside.
        taken: the tensor that each takes, by its name.
        norms: what each norm gives.
        inputs, output: of the block, [1, tokens, hidden].
    """

    order: Sequence[Layer]
    taken: dict[str, Tag]
    norms: dict[nn.Module, Tag]
    inputs: Tensor
    output: Tensor

    def takes(self, layer: Layer) -> Tag:
        """Return the tensor that layer takes."""
        return self.taken[layer.name]

    def read_norms(self) -> Iterator[tuple[nn.Module, list[Layer]]]:
        """Yield each norm that layers read, with them."""
        for norm, tag in self.norms.items():
            layers = [layer for layer in self.order if self.takes(layer) == tag]
            if layers:
                yield norm, layers


def _look(block: Block, run: Run) -> _Seen:
    layers = {layer.module: layer for layer in block.layers if layer.expert is None}
    taken: dict[str, Tag] = {}
    norms: dict[nn.Module, Tag] = {}
    kept, inputs = list[Tensor](), list[Tensor]()  # kept, so that no address is used twice

    def tag(tensor: Tensor) -> Tag:
        kept.append(tensor)
        return tensor.data_ptr(), tensor.shape

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        taken.setdefault(layers[module].name, tag(args[0]))

    def after(module: nn.Module, _: Any, output: Tensor) -> None:
        norms[module] = tag(output)

    handles = [module.register_forward_pre_hook(before) for module in layers]
    handles += [m.register_forward_hook(after) for m in block.module.modules() if is_norm(m)]
    handles.append(
        block.module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    )
    try:
        output = run()
    finally:
        for handle in handles:
            handle.remove()
    by_name = {layer.name: layer for layer in layers.values()}
    order = [by_name[name] for name in taken]
    return _Seen(order, taken, norms, inputs[0], output)


@dataclass(frozen=True)
class _Trial:
    """Tries whether a place is one: the block has to compute the same with scales folded in."""

    run: Run
    output: Tensor
    inputs: Tensor

    @torch.no_grad()
    def is_exact(self, place: Place) -> bool:
        """Return whether scales folded into place leave the block's output as it is."""
        draws = torch.Generator().manual_seed(0)
        scales = torch.rand(len(place.rows), generator=draws).to(place.rows.device) + 0.5
        tensors = [*place.source.parameters(), *(weight_of(one.module) for one in place.layers)]
        kept = [tensor.detach().clone() for tensor in tensors]
        fold(place, scales)
        found = self.run()
        for tensor, own in zip(tensors, kept, strict=True):
            tensor.data.copy_(own)
        return change(found, self.output, self.inputs) <= EXACT


def change(output: Tensor, expected: Tensor, inputs: Tensor) -> float:
    """Return the mean over tokens of |output - expected| / |expected - inputs|.

    All are of one block, [samples, tokens, hidden]. A few tokens of a language model are a thousand
    times as large as the others: each counts by itself.
    """
    added = (expected - inputs).norm(dim=-1).clamp(min=1e-30)
    return float(((output - expected).norm(dim=-1) / added).mean())


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
                "scales fold into exactly (a norm that feeds the residual stream or a router as "
                "well, experts, or a norm behind the layers); give transform=none"
            )


def _into(module: nn.Module) -> int:
    return output_first(module, weight_of(module)).shape[1]
