"""Bits of each layer for an average budget, by how much the loss feels each layer's rounding.

Source: SignRound's second version (arXiv 2512.04746) as auto-round 0.16.1 has it
(auto_scheme/delta_loss.py): the score of a layer at b bits is

    sum over batches of sum |dL / dW_hat * (W - W_hat)|

with the whole network rounded to nearest at b bits, and a dynamic programme takes the bits with the
smallest sum of scores that the budget allows. An expert that no token reaches has no gradient; that
is no score of 0, which would be the fewest bits, but one to be put in (missing_scores.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from math import gcd
from typing import Any, cast

import torch
from torch import Tensor, nn

from flexround.calibration.chain import in_float
from flexround.grid import MAX_BITS, MIN_BITS, Grid
from flexround.missing_scores import Scores, completed
from flexround.models.base import ModelAdapter
from flexround.ranges import Ranges
from flexround.structure import Layer, output_first
from flexround.utils.loss_scale import loss_scale

FINEST = 1 << 16  # steps of what the budget allows beyond the fewest bits


@dataclass(frozen=True)
class DeltaLoss:
    """argmin over bits of sum of scores, with a mean of bits over weights of at most average_bits.

    Attributes:
        average_bits: the budget, of codes alone: scales and zero points are not counted.
        options: the bits that a layer may have.
    """

    average_bits: float
    options: Sequence[int]

    def __post_init__(self) -> None:
        options = list(self.options)
        if len(set(options)) < 2 or not all(MIN_BITS <= bits <= MAX_BITS for bits in options):
            raise ValueError(
                f"allocation.options={options}: give at least two different numbers of bits, "
                f"{MIN_BITS} to {MAX_BITS} each"
            )
        if not min(options) <= self.average_bits <= max(options):
            raise ValueError(
                f"allocation.average_bits={self.average_bits}: give {min(options)} to "
                f"{max(options)}, the smallest and the largest of allocation.options={options}"
            )

    def __call__(
        self,
        adapter: ModelAdapter,
        batches: Sequence[Any],
        batch_size: int,
        grid: Grid,
        ranges: Ranges,
    ) -> tuple[dict[str, int], dict[str, dict[str, float]]]:
        """Return the bits of each layer, and its scores by bits, as JSON values.

        The scores are those that were measured: a layer that no token reaches at some number of
        bits has none there.

        Raises:
            ValueError: when a score is not finite, naming the layer, or no layer is reached at all
                of the options.
        """
        scores: dict[str, dict[int, float]] = {name: {} for name in adapter.layers()}
        options = sorted(set(self.options))
        for bits in options:
            found = delta_loss(adapter, batches, batch_size, replace(grid, bits=bits), ranges)
            for name, score in found.items():
                scores[name][bits] = score
        sizes = {n: _weight(layer).numel() for n, layer in adapter.layers().items()}
        chosen = cheapest(completed(scores, sizes, options), sizes, self.average_bits)
        told = {n: {str(bits): s for bits, s in own.items()} for n, own in scores.items()}
        return chosen, told


def check_kind(kind: str | None, offload: bool) -> None:
    """Check that a model of kind has the loss that layers are scored by, and is whole in memory.

    Raises:
        ValueError: when it is not.
    """
    if kind != "causal":
        raise ValueError(
            "allocation=delta_loss scores layers by the next token's loss, which only causal "
            "language models have; give allocation=none, and bits_per_layer= by hand"
        )
    if offload:
        raise ValueError(
            "allocation=delta_loss needs the whole network in memory; give offload=false"
        )


def delta_loss(
    adapter: ModelAdapter, batches: Sequence[Any], batch_size: int, grid: Grid, ranges: Ranges
) -> dict[str, float]:
    """Return the score on grid of each layer that a token reaches, by name.

    The network is as it was afterwards.

    Raises:
        ValueError: when one is not finite; names the layer.
    """
    scores = dict[str, float]()
    scaled_by = loss_scale(map(_weight, adapter.layers().values()))
    with _rounded(adapter, grid, ranges, scores), torch.enable_grad():
        for batch in batches:
            for rows in torch.arange(len(batch["input_ids"])).split(batch_size):
                own = {name: values[rows] for name, values in batch.items()}
                (scaled_by * next_token_loss(adapter.forward(own), own)).backward()
    scores = {name: score / scaled_by for name, score in scores.items()}
    for name, score in scores.items():
        if not torch.isfinite(torch.tensor(score)):
            raise ValueError(f"layer {name}: its score at {grid.bits} bits is {score}")
    return scores


def next_token_loss(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the mean cross-entropy of each token behind another, 0 where there is none.

    Padding is left out, as a token and as what one is predicted from.
    """
    labels = batch["input_ids"][:, 1:].to(logits.device)
    if "attention_mask" in batch:
        held = batch["attention_mask"].to(logits.device) != 0
        labels = labels.masked_fill(~(held[:, :-1] & held[:, 1:]), -100)  # which it ignores
    count = (labels >= 0).sum().clamp(min=1)
    flat = logits[:, :-1].flatten(0, 1).float()
    total = nn.functional.cross_entropy(flat, labels.flatten(), reduction="sum")
    return total / count


@contextmanager
def _rounded(
    adapter: ModelAdapter, grid: Grid, ranges: Ranges, scores: dict[str, float]
) -> Iterator[None]:
    """Have every layer rounded to nearest on grid; each backward pass adds to scores.

    A layer without a gradient gets no entry.
    """
    layers = adapter.layers()
    exact = {name: _weight(layer).detach().cpu().clone() for name, layer in layers.items()}
    handles = []
    for name, layer in layers.items():
        weight = cast(nn.Parameter, layer.module.weight)

        def add(param: Tensor, name: str = name) -> None:
            assert param.grad is not None, "it is called once there is one"
            # In float32: float16 holds no product as small as theirs.
            change = in_float(exact[name].to(param.device)) - in_float(param.detach())
            # Of an expert that padding alone is sent to there is a gradient, of zeros.
            if layers[name].expert is None or param.grad.any():
                score = (in_float(param.grad) * change).abs().sum(dtype=torch.float64).item()
                scores[name] = scores.get(name, 0.0) + score
            param.grad = None

        with torch.no_grad():
            oriented = output_first(layer.module, weight)
            own = replace(layer, chosen=grid.bits).grid(grid)
            values = own.granularity.group(oriented.float())
            oriented.copy_(own.nearest(values, *ranges(values, own)).view(oriented.shape))
        weight.requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            weight = cast(nn.Parameter, layer.module.weight)
            weight.requires_grad_(False).copy_(exact[name])
        adapter.model.to(adapter.storage_device)


def cheapest(scores: Scores, sizes: Mapping[str, int], average_bits: float) -> dict[str, int]:
    """Return the bits of each layer with the smallest sum of scores within the budget.

    The mean of bits over all weights, sizes by layer, is at most average_bits. What a layer takes
    beyond its fewest bits is rounded up where the budget has more than FINEST steps.
    """
    names = list(scores)
    fewest = {name: min(scores[name]) for name in names}
    extra = {
        name: {bits: sizes[name] * (bits - fewest[name]) for bits in sorted(scores[name])}
        for name in names
    }
    # As it is written: 4.35 times 100 is less than 435 in floating point.
    room = int(Fraction(str(average_bits)) * sum(sizes.values())) - sum(
        sizes[n] * fewest[n] for n in names
    )
    assert room >= 0, "the fewest bits are within the budget"
    step = max(1, gcd(*(cost for own in extra.values() for cost in own.values())), room // FINEST)
    best = torch.zeros(room // step + 1, dtype=torch.float64)
    choices = []
    for name in names:
        tries = torch.full((len(scores[name]), len(best)), torch.inf, dtype=torch.float64)
        for place, (bits, cost) in enumerate(extra[name].items()):
            steps = -(-cost // step)
            if steps < len(best):
                tries[place, steps:] = best[: len(best) - steps] + scores[name][bits]
        best, choice = tries.min(dim=0)  # the first of equals: the fewest bits
        choices.append(choice.to(torch.uint8))  # an eighth, of as many as there are steps
    left, found = len(best) - 1, dict[str, int]()
    for name, choice in zip(reversed(names), reversed(choices), strict=True):
        bits = list(extra[name])[int(choice[left])]
        found[name] = bits
        left -= -(-extra[name][bits] // step)
    return {name: found[name] for name in names}


def _weight(layer: Layer) -> Tensor:
    return cast(nn.Parameter, layer.module.weight)
