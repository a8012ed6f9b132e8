"""Trace of a network: the order of its modules, as one forward pass shows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """One call of a module: what went in first, and what came out.

    A tensor's version tells whether it was changed in place since, as torchvision's residual add
    changes the output of a block's last convolution.

    Attributes:
        alone: whether the module was given nothing besides its first tensor.
    """

    module: nn.Module
    inputs: Tensor
    output: Tensor
    input_version: int
    output_version: int
    alone: bool = True


class Trace:
    """What one forward pass showed: every module call in the order they began.

    Attributes:
        runs: how often each module was called, also those that take or give no single tensor.
        output: what the network gave.
    """

    def __init__(self, calls: list[Call], runs: Counter[nn.Module], output: Tensor) -> None:
        self.calls, self.runs, self.output = calls, runs, output
        self.modules = list(dict.fromkeys(call.module for call in calls))
        self.first = {call.module: call for call in reversed(calls)}

    def consumer(self, module: nn.Module, kinds: tuple[type, ...]) -> nn.Module | None:
        """Return the module of one of the kinds that takes module's very output, or None."""
        source = self.first[module]
        for call in self.calls:
            same = call.inputs is source.output and call.input_version == source.output_version
            if same and isinstance(call.module, kinds):
                return call.module
        return None


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return model's output [batch, ...] on images [batch, 3, height, width].

    Raises:
        ValueError: when its forward pass fails on them, or gives no tensor with a batch axis.
    """
    name, size = type(model).__name__, " x ".join(map(str, images.shape[2:]))
    what = f"images of {size} pixels" if images.dim() == 4 else f"inputs {list(images.shape)}"
    try:
        output = model(images)
    except Exception as error:  # a network may raise anything, about an image's size above all
        raise ValueError(f"{name}'s forward pass fails on {what}: {first_line(error)}") from error
    if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != len(images):
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"{name} answers {len(images)} samples with {found}; only networks that give a row of "
            "numbers a sample, as classifiers do, can be quantized"
        )
    return output


def first_line(error: Exception) -> str:
    """Return an error's kind and the first line of what it says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}{f': {text[0]}' if text else ''}"


@torch.no_grad()
def trace(model: nn.Module, example: Tensor) -> Trace:
    """Run model on example and return all calls of modules that map a tensor to a tensor.

    Raises:
        ValueError: when the forward pass fails.
    """
    calls: list[Call | None] = []
    runs: Counter[nn.Module] = Counter()
    open_calls: list[tuple[int, int]] = []  # place in calls, version of the input

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        version = args[0]._version if args and isinstance(args[0], Tensor) else -1
        open_calls.append((len(calls), version))
        calls.append(None)
        runs[module] += 1

    def after(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        index, version = open_calls.pop()
        if version >= 0 and isinstance(output, Tensor):
            others = [*args[1:], *kwargs.values()]
            alone = all(other is None or other is False for other in others)
            calls[index] = Call(module, args[0], output, version, output._version, alone)

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        output = logits_of(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return Trace([call for call in calls if call is not None], runs, output)
