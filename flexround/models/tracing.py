"""What one forward pass shows of a network's order, and BatchNorm folding by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


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


@dataclass
class Statistics:
    """What a BatchNorm says of a convolution's output: mean and standard deviation, [out]."""

    mean: Tensor
    deviation: Tensor


@torch.no_grad()
def fold_batch_norm(model: nn.Module, example: Tensor) -> dict[nn.Module, Statistics]:
    """Fold every BatchNorm into the convolution that feeds it, in place, and check the result.

    Return the statistics that went with them. A BatchNorm that changes nothing has none: its own
    were folded before the checkpoint was made.

    Raises:
        ValueError: when folding changes the model's output on example.
    """
    expected = model(example)
    order = trace(model, example)
    convolutions = [m for m in order.modules if isinstance(m, nn.Conv2d)]
    replaced, statistics = {}, {}
    for conv in convolutions:
        norm = order.consumer(conv, (nn.BatchNorm2d,))
        if norm is None:
            continue
        norm = cast(nn.BatchNorm2d, norm)
        assert norm.running_mean is not None, "a BatchNorm in eval mode keeps its statistics"
        assert norm.running_var is not None, "a BatchNorm in eval mode keeps its statistics"
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
            norm.weight, norm.bias,
        )  # fmt: skip
        conv.weight, conv.bias = weight.requires_grad_(False), bias.requires_grad_(False)
        deviation = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.abs()
        if norm.bias is not None and (norm.bias != 0).any():
            statistics[cast(nn.Module, conv)] = Statistics(norm.bias.clone(), deviation.clone())
        # timm's BatchNormAct2d carries its activation function inside.
        replaced[norm] = getattr(norm, "act", None) or nn.Identity()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in replaced:
                setattr(parent, name, replaced[child])
    if not torch.allclose(model(example), expected, rtol=1e-3, atol=1e-3):
        raise ValueError("folding BatchNorm changed the model's output")
    return statistics
