"""Nouns that a model is described by: Layer, Site, Block."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from flexround.grid import Grid, PerChannel, PerGroup

Role = Literal["inner", "stem", "head", "kv"]


@dataclass(frozen=True)
class Site:
    """One tensor of a block that is quantized.

    Attributes:
        name: of the module and the side, in the model.
        modules: the modules that take the tensor as their input, or the one that returns it.
        side: which of the two.
        use: which of the modules' calls in a forward pass of their block it is: a ReLU may serve
            several places, and a layer may be called twice.
        role: stem is the first layer's output, head the last layer's input, kv a key or a value.
    """

    name: str
    modules: Sequence[nn.Module]
    side: Literal["input", "output"]
    use: int = 0
    role: Role = "inner"


class Routed(Protocol):
    """A part of a model that takes some of the tokens.

    Attributes:
        tokens: which of all tokens, in order of samples, its latest inputs were, [rows].
    """

    tokens: Tensor


QUANTIZABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)

# Known by name, so that nothing is imported. transformers' Conv1D is a Linear that stores
# [in, out]; timm's Linear is torch's but for TorchScript, its Conv2dSame pads as TensorFlow does.
TRANSPOSED = "transformers.pytorch_utils.Conv1D.forward"
SAME = "timm.layers.conv2d_same.Conv2dSame.forward"
FORWARDS = (
    *(f"{kind.__module__}.{kind.__qualname__}.forward" for kind in QUANTIZABLE),
    "timm.layers.linear.Linear.forward",
    SAME,
)
CONVOLVE = (None, nn.Conv1d._conv_forward, nn.Conv2d._conv_forward)


def is_quantizable(module: nn.Module) -> bool:
    """Return whether module is a layer whose weight is to be quantized."""
    return isinstance(module, QUANTIZABLE) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Return whether module is transformers' Conv1D, a linear layer that stores [in, out]."""
    return _forward_of(module) == TRANSPOSED


def check_layer(name: str, module: nn.Module) -> None:
    """Check that a layer computes with its weight as it is, so that a quantized one takes effect.

    Raises:
        ValueError: when it does not, or nothing is known of it; names the layer.
    """
    if "weight" not in module._parameters:
        raise ValueError(
            f"layer {name}: its weight is made of other parameters at every call (weight_norm, "
            "spectral_norm, pruning); make it a plain one first, as by "
            "torch.nn.utils.parametrize.remove_parametrizations or remove_weight_norm"
        )
    own = "forward" in vars(module) or _forward_of(module) not in (*FORWARDS, TRANSPOSED)
    if own or getattr(type(module), "_conv_forward", None) not in CONVOLVE:
        raise ValueError(
            f"layer {name}: {type(module).__name__} has a forward pass of its own and may compute "
            "with another weight than the one that is quantized; known are torch's Linear, "
            "Conv1d and Conv2d, timm's Conv2dSame and transformers' Conv1D"
        )


def pads_as_tensorflow(module: nn.Module) -> bool:
    """Return whether a convolution pads by the size of its input, as timm's Conv2dSame does."""
    return _forward_of(module) == SAME


def _forward_of(module: nn.Module) -> str:
    """Return the full name of the forward pass that module's class has, or has inherited."""
    forward: Any = type(module).forward  # of a scripted module it has no name
    return f"{forward.__module__}.{getattr(forward, '__qualname__', '')}"


def output_first(module: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight of module's layout as [out, in, *kernel]."""
    return weight.T if is_transposed(module) else weight


@dataclass(frozen=True)
class Layer:
    """One layer whose weight is quantized.

    Attributes:
        name: where it lies in the model.
        module: a Linear or a convolution.
        bits: its own bits where they differ from the run's (first and last layer), or None.
        activation: the activation function applied to nothing but its output, or None.
        expert: the expert of a mixture that it is part of, or None; the rows of its inputs are then
            the tokens that were sent there.
        chosen: its bits where bits_per_layer= or an allocation gives it some, whatever bits says.
        limits: the least and the largest weight of each group that quantization keeps, [groups, 1];
            None keeps all.
    """

    name: str
    module: nn.Module
    bits: int | None = None
    activation: nn.Module | None = None
    expert: Routed | None = None
    limits: tuple[Tensor, Tensor] | None = field(default=None, compare=False)
    chosen: int | None = None

    def grid(self, grid: Grid) -> Grid:
        """Return the grid of this layer in a run on grid.

        A layer that keeps its own bits has its groups widened to channels: the group sizes that
        fit the inner layers seldom divide a stem's 27 or 147 weights a channel. It is on integers,
        also where the others are on a table of levels. Bits that are chosen leave its groups.
        """
        if self.bits is None:
            return grid if self.chosen is None else replace(grid, bits=self.chosen)
        whole = isinstance(grid.granularity, PerGroup)
        return replace(
            grid,
            bits=self.chosen or self.bits,
            granularity=PerChannel() if whole else grid.granularity,
            levels=None,
        )

    @torch.no_grad()
    def clip(self, grid: Grid) -> None:
        """Clip the weight to the limits of its groups on grid, the layer's own, in place."""
        if self.limits is None:
            return
        stored = self.module.weight
        assert isinstance(stored, Tensor), "a layer has a weight"
        weight = output_first(self.module, stored.detach())
        values = grid.granularity.group(weight)
        low, high = (end.to(values) for end in self.limits)
        weight.copy_(torch.minimum(torch.maximum(values, low), high).reshape(weight.shape))


def bits_by_name(names: Sequence[str], patterns: Mapping[str, int]) -> dict[str, int]:
    """Return the bits of the layers of these names that patterns give; the last that fits counts.

    In a pattern * stands for any text, ? for any character, [ab] for either.

    Raises:
        ValueError: when a pattern fits no layer.
    """
    found: dict[str, int] = {}
    for pattern, bits in patterns.items():
        found |= dict.fromkeys(fitting(names, pattern, "bits_per_layer"), bits)
    return found


def fitting(names: Sequence[str], pattern: str, option: str) -> list[str]:
    """Return the names of layers that pattern, a value of option, fits.

    Raises:
        ValueError: when it fits none; says what it may have meant.
    """
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
        raise ValueError(
            f"{option}: {pattern} is none of the {len(names)} layers that are quantized; "
            f"give a name such as {near[0]}, or a pattern such as *.{near[0].split('.')[-1]}"
        )
    return found


@dataclass(frozen=True)
class Block:
    """A unit of reconstruction: a module and the layers in it, in execution order.

    Attributes:
        activation: the activation function that follows the module and belongs to its output.
        sites: the activations that are quantized in it and at its output.
        channel_dim: the axis of its output that the reconstruction loss sums over: the last one of
            tokens and vectors, 1 of images.
    """

    name: str
    module: nn.Module
    layers: Sequence[Layer]
    activation: nn.Module | None = None
    sites: Sequence[Site] = ()
    channel_dim: int = -1

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return next(self.module.parameters()).dtype


def along_tokens(inputs: Tensor, mask: Tensor) -> bool:
    """Return whether inputs are [samples, channels, tokens] for mask's [samples, tokens]."""
    return (len(inputs), inputs.shape[-1]) == mask.shape


def counted(layer: Layer | None, inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Return those of a layer's inputs [..., in] that are no padding, [rows, in] or as they are.

    mask [samples, tokens] tells which tokens count, None where all do. Inputs that are no tokens,
    as the embeddings of relative positions, count whole. layer is None for what is no layer's.
    """
    if mask is None:
        return inputs
    mask = mask.to(inputs.device)
    if layer is not None and isinstance(layer.module, nn.Conv1d):  # [samples, channels, tokens]
        return inputs.transpose(1, 2)[mask] if along_tokens(inputs, mask) else inputs
    if layer is not None and layer.expert is not None:
        return inputs[mask.flatten()[layer.expert.tokens]]
    if inputs.shape[:2] == mask.shape:
        return inputs[mask]
    if inputs.dim() == 2 and len(inputs) == mask.numel():
        return inputs[mask.flatten()]
    return inputs
