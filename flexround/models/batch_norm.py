"""BatchNorm folded into the convolutions that feed it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from flexround.models.tracing import trace


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
