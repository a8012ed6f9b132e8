"""Cross-layer equalisation and absorption of high biases (Nagel et al., arXiv 1906.04721).

FlexRound's Table 10 applies both to MobileNetV2 with ReLU6 replaced by ReLU. For two convolutions
with a ReLU between them, relu(s * x) = s * relu(x) lets a scale wander from one to the other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flexround.models.batch_norm import Statistics
from flexround.models.tracing import Trace, logits_of, same_output, trace

log = logging.getLogger(__name__)

ROUNDS = 20  # passes over all pairs; the scales settle in far fewer
SIGMAS = 3.0  # a pre-activation that is normal lies above mean - 3 deviations, sec. 4.1.3


def replace_relu6(model: nn.Module) -> None:
    """Replace every ReLU6 of model by a ReLU, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU6):
                setattr(parent, name, nn.ReLU())


def find_pairs(order: Trace) -> list[tuple[nn.Conv2d, nn.Conv2d]]:
    """Return the pairs (A, B) of convolutions where B takes relu(A's output) and nothing else."""
    pairs = []
    for conv in order.modules:
        if not isinstance(conv, nn.Conv2d):
            continue
        relu = order.reader(order.first[conv], (nn.ReLU,))  # a ReLU may serve several places
        after = order.reader(relu, (nn.Conv2d,)) if relu is not None else None
        if after is not None and isinstance(after.module, nn.Conv2d) and _fits(after.module):
            pairs.append((conv, after.module))
    return pairs


@torch.no_grad()
def equalize(model: nn.Module, example: Tensor, statistics: Mapping[nn.Module, Statistics]) -> None:
    """Equalise the weight ranges of all pairs in place; model computes the same as before.

    statistics are scaled along.

    Raises:
        ValueError: when the model holds no pair, or its output changes on example.
    """
    expected = logits_of(model, example)
    pairs = find_pairs(trace(model, example))
    if not pairs:
        raise ValueError("model.equalize=true: no two convolutions with only a ReLU between them")
    for _ in range(ROUNDS):
        for first, second in pairs:
            scale = _balance(first, second)
            if first in statistics:
                statistics[first].mean /= scale
                statistics[first].deviation /= scale
    if not same_output(logits_of(model, example), expected, near=1e-3):
        raise ValueError("model.equalize=true changes this model's output; it is built otherwise")
    log.info("equalised %d pairs of convolutions", len(pairs))


@torch.no_grad()
def absorb_biases(
    model: nn.Module, example: Tensor, statistics: Mapping[nn.Module, Statistics]
) -> None:
    """Absorb the high biases of all pairs in place.

    Raises:
        ValueError: when the checkpoint no longer holds what BatchNorm knew.
    """
    pairs = [(a, b) for a, b in find_pairs(trace(model, example)) if a in statistics]
    if not pairs:
        raise ValueError(
            "model.absorb_biases=true needs BatchNorm's statistics, which this checkpoint has "
            "folded away; give model.absorb_biases=false"
        )
    for first, second in pairs:
        absorb(first, second, statistics[first].mean, statistics[first].deviation)


@torch.no_grad()
def absorb(first: nn.Conv2d, second: nn.Conv2d, mean: Tensor, deviation: Tensor) -> None:
    """Move what first's pre-activation [out] always exceeds into second's bias, in place.

    Exact for inputs whose pre-activation stays above mean - 3 deviations; the border of a padded
    image sees zeros instead of the constant.
    """
    constant = (mean - SIGMAS * deviation).clamp(min=0)  # [out of first]
    assert first.bias is not None, "folding gives a bias"
    assert second.bias is not None, "folding gives a bias"
    first.bias -= constant
    kernel = second.weight.sum(dim=(2, 3))  # [out, in or 1]
    second.bias += kernel[:, 0] * constant if second.groups > 1 else kernel @ constant


def _fits(second: nn.Conv2d) -> bool:
    return second.groups == 1 or second.groups == second.in_channels == second.out_channels


def _balance(first: nn.Conv2d, second: nn.Conv2d) -> Tensor:
    """Scale first's output channels by 1 / s and second's input channels by s [out], sec. 4.1.2.

    Return s.
    """
    own = first.weight.abs().amax(dim=(1, 2, 3))
    depthwise = second.groups > 1
    other = second.weight.abs().amax(dim=(1, 2, 3) if depthwise else (0, 2, 3))
    alive = (own > 0) & (other > 0)
    scale = torch.where(alive, (own / other.clamp(min=1e-30)).sqrt(), torch.ones_like(own))
    first.weight /= scale[:, None, None, None]
    if first.bias is not None:
        first.bias /= scale
    second.weight *= scale[:, None, None, None] if depthwise else scale[None, :, None, None]
    return scale
