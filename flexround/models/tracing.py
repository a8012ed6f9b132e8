"""Trace of a network: the order of its modules, as one forward pass shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """One call of a module: what went in first, and what came out.

    A tensor's version tells whether it was changed in place since, as torchvision's residual add
    changes the output of a block's last convolution.
    """

    module: nn.Module
    inputs: Tensor
    output: Tensor
    input_version: int
    output_version: int


class Trace:
    """What one forward pass showed: every module call in the order they began."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls
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


@torch.no_grad()
def trace(model: nn.Module, example: Tensor) -> Trace:
    """Run model on example and return all calls of modules that map a tensor to a tensor."""
    calls: list[Call | None] = []
    open_calls: list[tuple[int, int]] = []  # place in calls, version of the input

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        version = args[0]._version if args and isinstance(args[0], Tensor) else -1
        open_calls.append((len(calls), version))
        calls.append(None)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        index, version = open_calls.pop()
        if version >= 0 and isinstance(output, Tensor):
            calls[index] = Call(module, args[0], output, version, output._version)

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))
    try:
        model(example)
    finally:
        for handle in handles:
            handle.remove()
    return Trace([call for call in calls if call is not None])
