"""Where activations are quantized: the places of a model, named by its adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

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
