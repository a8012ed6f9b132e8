"""BatchNorm folded into the layers that feed it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from flexround.models.tracing import Trace, logits_of, same_output, trace

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass
class Statistics:
    """What a BatchNorm says of a convolution's output: mean and standard deviation, [out]."""

    mean: Tensor
    deviation: Tensor


@torch.no_grad()
def fold_batch_norm(model: nn.Module, example: Tensor) -> dict[nn.Module, Statistics]:
    """Fold every BatchNorm into the layer that feeds it, in place, and check the result.

    Return the statistics that went with them. A BatchNorm that changes nothing has none: its own
    were folded before the checkpoint was made.

    One that no convolution or linear layer feeds stays what it is, a scale and a shift a channel.

    Raises:
        ValueError: when a BatchNorm keeps no statistics, or folding changes the model's output on
            example.
    """
    order = trace(model, example)
    check_statistics(model, order)
    replaced: dict[nn.Module, nn.Module] = {}
    statistics: dict[nn.Module, Statistics] = {}
    for layer in order.modules:
        kind = _folded(layer, order)
        norm = None if kind is None else order.consumer(layer, (kind,))
        if norm is None:
            continue
        layer, norm = cast(nn.Conv2d, layer), cast(nn.BatchNorm2d, norm)
        fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
        assert norm.running_mean is not None, "checked above"
        assert norm.running_var is not None, "checked above"
        weight, bias = fuse(
            layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps,
            torch.ones_like(norm.running_var) if norm.weight is None else norm.weight,
            torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias,
        )  # fmt: skip
        layer.weight, layer.bias = weight.requires_grad_(False), bias.requires_grad_(False)
        deviation = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.abs()
        if norm.bias is not None and (norm.bias != 0).any():
            statistics[layer] = Statistics(norm.bias.clone(), deviation.clone())
        # timm's BatchNormAct2d carries its activation function inside.
        replaced[norm] = getattr(norm, "act", None) or nn.Identity()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in replaced:
                setattr(parent, name, replaced[child])
    if not same_output(logits_of(model, example), order.output, near=1e-3):
        raise ValueError("folding BatchNorm changed the model's output")
    return statistics


def _folded(layer: nn.Module, order: Trace) -> type[nn.Module] | None:
    """Return the class of BatchNorm that normalises the channels which layer gives, if any."""
    if isinstance(layer, nn.Conv2d):
        return nn.BatchNorm2d
    # Of tokens [batch, tokens, channels] BatchNorm1d normalises the second axis.
    vectors = isinstance(layer, nn.Linear) and order.first[layer].output.dim() == 2
    return nn.BatchNorm1d if vectors or isinstance(layer, nn.Conv1d) else None


def check_statistics(model: nn.Module, order: Trace) -> None:
    """Check that no BatchNorm in use takes its statistics from the batch at hand.

    Raises:
        ValueError: when one does; names it.
    """
    for name, module in model.named_modules():
        if isinstance(module, NORMS) and module in order.runs and module.running_mean is None:
            raise ValueError(
                f"{type(module).__name__} {name} keeps no running statistics, so that an image's "
                "logits depend on the batch that it is in; give a network that keeps them"
            )
