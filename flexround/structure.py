"""Nouns that a model is described by: Layer, Site, Block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

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
        use: which of the module's calls in a forward pass of its block it is: a ReLU module may
            serve several places.
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


# transformers' Conv1D is a Linear that stores [in, out]; known by name, to import nothing.
TRANSPOSED = "Conv1D"


def is_quantizable(module: nn.Module) -> bool:
    """Return whether module's weight can be quantized."""
    return isinstance(module, QUANTIZABLE) or type(module).__name__ == TRANSPOSED


def output_first(module: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight of module's layout as [out, in, *kernel]."""
    return weight.T if type(module).__name__ == TRANSPOSED else weight


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
    """

    name: str
    module: nn.Module
    bits: int | None = None
    activation: nn.Module | None = None
    expert: Routed | None = None

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


@dataclass(frozen=True)
class Block:
    """A unit of reconstruction: a module and the layers in it, in execution order.

    Attributes:
        activation: the activation function that follows the module and belongs to its output.
        sites: the activations that are quantized in it and at its output.
    """

    name: str
    module: nn.Module
    layers: Sequence[Layer]
    activation: nn.Module | None = None
    sites: Sequence[Site] = ()

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return next(self.module.parameters()).dtype
