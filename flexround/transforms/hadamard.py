"""QuaRot's rotations that fuse into the weights (arXiv 2404.00456, sec. 4, stage 1).

The residual stream x becomes x Q. RMSNorm commutes with every rotation once its weight is absorbed
by the layers behind it; LayerNorm with those that keep the vector of ones, so that it stays a
LayerNorm (QuaRot makes it an RMSNorm). Not done: rotations at run time, of the inputs of down_proj
and of queries and keys behind the rotary embedding, which no folded weight can carry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flexround.calibration.calls import RecordedCalls
from flexround.models.language_adapter import LanguageAdapter
from flexround.structure import Block, Layer, output_first
from flexround.transforms.base import Calibration, first_sample
from flexround.transforms.finding import EXACT, Heads, change, find_places
from flexround.transforms.hadamard_matrices import hadamard, keeping_mean, random_hadamard
from flexround.transforms.places import Place, check_covered, is_norm, weight_of
from flexround.transforms.stream_ends import Ends, rotate_ends
from flexround.transforms.turning import absorb, turn_heads, turn_inputs, turn_outputs


@dataclass(frozen=True)
class Hadamard:
    """W' = W diag(norm) Q of layers that read the stream, W' = Q^T W of those that write to it.

    Attributes:
        heads: whether values are turned within each head, and turned back in front of o_proj.
    """

    heads: bool

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return "hadamard"

    def __call__(self, adapter: LanguageAdapter, calibration: Calibration) -> Mapping[str, Any]:
        """Rotate adapter's model; return the width, how many heads, and what untying has cost.

        Raises:
            ValueError: when a width has no Hadamard matrix, or the network is no chain of norms,
                readers and writers; names the layer.
        """
        sample = first_sample(calibration.batches)
        calls = adapter.record_calls([sample])
        width, heads = calls.inputs.shape[-1], Heads.of(adapter.model.config)
        rotation, own = self._drawn(width, heads, calibration.generator, adapter.device)
        ends = Ends.of(adapter, sample, width)
        if ends.takes_mean:
            rotation = keeping_mean(rotation)
        names = {module: name for name, module in adapter.model.named_modules()}
        turned = 0
        for index, block in enumerate(adapter.blocks()):
            with adapter.on_device(block):
                work = _Block(block, calls, names, heads, rotation, adapter.device)
                turned += work.turn(own)
            calls = calls.with_inputs(adapter.advance(index, work.output))
        untied = rotate_ends(adapter, ends, rotation)
        return {"width": width, "turned_heads": turned, "untied_bytes": untied}

    def _drawn(
        self, width: int, heads: Heads, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """Return the rotations of the stream [width, width] and of a head, None where none is."""
        try:
            rotation = random_hadamard(width, generator)
        except ValueError as error:
            raise ValueError(
                f"transform=hadamard: the residual stream is {width} wide, and {error}; give "
                "transform=none, or another model"
            ) from error
        if not self.heads:
            return rotation.to(device), None
        try:
            hadamard(heads.width)
        except ValueError as error:
            raise ValueError(
                f"transform=hadamard: heads are {heads.width} wide, and {error}; give "
                "transform.heads=false"
            ) from error
        return rotation.to(device), random_hadamard(heads.width, generator).to(device)


class _Block:
    """One block at work: its norms, what reads them, and what writes to the stream.

    Attributes:
        output: on the sample, before anything is turned, [1, tokens, width].
    """

    def __init__(
        self,
        block: Block,
        calls: RecordedCalls,
        names: Mapping[nn.Module, str],
        heads: Heads,
        rotation: Tensor,
        device: torch.device,
    ) -> None:
        self._block, self._calls, self._rotation = block, calls, rotation
        self._names, self._heads, self._device = names, heads, device
        self._inputs = calls.inputs.to(device).float()
        self.output = self._run(self._inputs)

    def turn(self, own: Tensor | None) -> int:
        """Turn the block's weights, in place; return how many value heads own has turned.

        Raises:
            ValueError: when it is built otherwise; names the layer.
        """
        places = find_places(self._block, self._names, self._heads, lambda: self._run(self._inputs))
        check_covered(self._block, places, len(self._rotation), "hadamard")
        norms = [place for place in places if place.norm]
        readers = {layer.name for place in norms for layer in place.layers}
        writers = [layer for layer in self._block.layers if layer.name not in readers]
        self._check(norms, writers)
        turned = 0 if own is None else self._turn_values(places, own)
        for place in norms:
            absorb(place, self._names[place.source])
            for layer in place.layers:
                turn_inputs(layer.module, self._rotation)
            bias = getattr(place.source, "bias", None)
            if bias is not None:
                bias.copy_((bias.double() @ self._rotation).to(bias))
        for layer in writers:
            turn_outputs(layer.module, self._rotation)
        found = self._run((self._inputs.double() @ self._rotation).float())
        back = (found.double() @ self._rotation.T).float()
        if not change(back, self.output, self._inputs) <= EXACT:
            raise ValueError(
                f"layer {self._block.name}: transform=hadamard does not leave it as it is: "
                "something in it besides norms and linear layers reads the residual stream or "
                "writes to it; give transform=none"
            )
        return turned

    @torch.no_grad()
    def _run(self, inputs: Tensor) -> Tensor:
        return self._calls.replay(self._block.module, torch.arange(1), self._device, inputs)

    def _check(self, norms: Sequence[Place], writers: Sequence[Layer]) -> None:
        """Check that all norms of the stream are read by layers, and the other layers write to it.

        Raises:
            ValueError: names the one that is not.
        """
        width, absorbed = len(self._rotation), {place.source for place in norms}
        for layer in writers:
            if len(output_first(layer.module, weight_of(layer.module))) != width:
                raise ValueError(
                    f"layer {layer.name}: it neither reads the residual stream by way of a norm "
                    "that serves linear layers alone, none in model.leave, nor writes "
                    "to it; transform=hadamard is not exact there, give transform=none"
                )
        for norm in self._block.module.modules():
            if is_norm(norm) and weight_of(norm).numel() == width and norm not in absorbed:
                raise ValueError(
                    f"layer {self._names[norm]}: its weights scale what goes into the residual "
                    "stream, which can't be turned then; transform=hadamard is not exact there, "
                    "give transform=none"
                )

    def _turn_values(self, places: Sequence[Place], own: Tensor) -> int:
        """Turn the values of each head by own [width, width]; return how many heads there are."""
        for place in places:
            if place.norm or len(place.rows) != self._heads.values * self._heads.width:
                continue
            modules = [place.source, place.layers[0].module]
            kept = [[p.detach().clone() for p in module.parameters()] for module in modules]
            turn_heads(place, own)
            if change(self._run(self._inputs), self.output, self._inputs) <= EXACT:
                return self._heads.values
            for module, tensors in zip(modules, kept, strict=True):
                for parameter, tensor in zip(module.parameters(), tensors, strict=True):
                    parameter.data.copy_(tensor)
        return 0
