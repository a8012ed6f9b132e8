"""Search for the places of a block, by trying: names of layers promise nothing.

Scales are folded into a candidate, and the block has to compute what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flexround.structure import Block, Layer, output_first
from flexround.transforms.places import Place, fold, is_norm, restoring, weight_of

Run = Callable[[], Tensor]  # a block's output on a calibration sample, [1, tokens, hidden]

# Mean over tokens of |change of a block's output| / |what the block adds to the stream|. A wrong
# place changes it by a tenth and more, rounding in float32 by 1e-6 and less.
EXACT = 1e-3


@dataclass(frozen=True)
class Heads:
    """The attention heads of a network: queries, those that keys and values have, their width."""

    queries: int
    values: int
    width: int

    @classmethod
    def of(cls, config: Any) -> Heads:
        """Return the heads that a configuration of transformers states.

        Raises:
            ValueError: when it has others for each layer.
        """
        try:
            queries: Any = getattr(config, "num_attention_heads", None)
            queries = queries or getattr(config, "num_heads", 1)
            values = getattr(config, "num_key_value_heads", None) or queries
            width = getattr(config, "head_dim", None) or config.hidden_size // queries
        except RuntimeError as error:  # transformers', where layers differ in it
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"transform= takes the heads of attention to be alike in every layer: {reason}; "
                "give transform=none"
            ) from error
        return cls(int(queries), int(values), int(width))

    def index(self, device: torch.device) -> Tensor:
        """Return which value channel each channel of the heads' outputs comes from."""
        head = torch.arange(self.queries, device=device) // (self.queries // self.values)
        return (head[:, None] * self.width + torch.arange(self.width, device=device)).flatten()


def find_places(
    block: Block, names: Mapping[nn.Module, str], heads: Heads, run: Run
) -> list[Place]:
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
        place_or_none = _pair(layer, seen.order[:at], heads, trial)
        if place_or_none is not None:
            found.append(place_or_none)
    return found


def _pair(layer: Layer, before: Sequence[Layer], heads: Heads, trial: _Trial) -> Place | None:
    """Return the place whose source is one of the layers before, the nearest first."""
    weight = output_first(layer.module, weight_of(layer.module))
    before = [source for source in before if weight_of(source.module).dim() == 2]
    if weight.dim() != 2:  # a convolution's inputs are patches
        return None
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
        with restoring(tensors):
            fold(place, scales)
            found = self.run()
        return change(found, self.output, self.inputs) <= EXACT


def change(output: Tensor, expected: Tensor, inputs: Tensor) -> float:
    """Return the mean over tokens of |output - expected| / |expected - inputs|.

    All are of one block, [samples, tokens, hidden]. A few tokens of a language model are a thousand
    times as large as the others: each counts by itself.
    """
    added = (expected - inputs).norm(dim=-1).clamp(min=1e-30)
    return float(((output - expected).norm(dim=-1) / added).mean())
