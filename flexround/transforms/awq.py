"""AWQ (arXiv 2306.00978, sec. 3.2): scales and clipping that rounding to nearest errs least under.

    s* = argmin over s of |Q(W diag(s)) diag(s)^-1 X - W X|^2,   s = mean|X|^a, a from 0 up to 1

The squared error of a layer is a sum over its rows of dw G dw^T with G = X X^T, which needs no
activation once G is known: every candidate sees the whole calibration set. The authors' code looks
at the output of the attention or the feed-forward behind the layers, on some of the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flexround.grid import Grid
from flexround.models.language_adapter import LanguageAdapter
from flexround.ranges import MinMax
from flexround.solvers.hessian import Hessians
from flexround.solvers.weight_clipping import best_scales
from flexround.structure import Layer, output_first
from flexround.transforms.base import Calibration
from flexround.transforms.places import Place, fold, restoring, weight_of
from flexround.transforms.walk import PlacesAtWork, places_walk

FLOOR = 1e-4  # of a scale, as in the authors' code
STEP = 0.05  # of a range, that each candidate of clipping gives up
# Queries and keys meet in a product, and their errors by themselves say little: not clipped, as in
# the authors' code, nor is one layer that gives both, values with them. By the last part of a name.
UNCLIPPED = (
    "q_proj", "k_proj", "query", "key", "query_proj", "key_proj",
    "qkv", "c_attn", "qkv_proj", "query_key_value", "Wqkv", "W_pack",
)  # fmt: skip

# What is found of a place, and of a layer, behind its name.
PLACE, ENDS = (" scales", " errors"), (" low", " high")


@dataclass(frozen=True)
class AWQ:
    """W' = W diag(s), X' = X diag(s)^-1; each range cut to the share that errs least.

    Attributes:
        candidates: exponents a = 0, 1/candidates, ...; the first one leaves the network alone.
        clip: whether ranges are cut. Weights are clipped when they are quantized, not before.
        clip_candidates: shares 1, 0.95, ... of a range.
    """

    candidates: int
    clip: bool
    clip_candidates: int

    def __post_init__(self) -> None:
        if not 1 <= self.candidates <= 1000:
            raise ValueError(f"transform.candidates={self.candidates}: give 1 to 1000")
        if not 1 <= self.clip_candidates < 1 / STEP:
            raise ValueError(
                f"transform.clip_candidates={self.clip_candidates}: give 1 to {round(1 / STEP) - 1}"
            )

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return "awq"

    def __call__(self, adapter: LanguageAdapter, calibration: Calibration) -> Mapping[str, Any]:
        """Scale adapter's model and have its layers know their limits.

        Return the exponent that each place has, and the objective of each before and after.

        Raises:
            ValueError: when a layer that reads the stream has nothing in front that can be scaled.
        """
        exponents: dict[str, float] = {}
        errors: dict[str, list[float]] = {}
        limits: dict[str, tuple[Tensor, Tensor]] = {}
        for work in places_walk(adapter, calibration, self.name):
            with work as at_work:
                block = at_work.work.block
                clipped = [layer for layer in block.layers if self._clips(layer)]
                names = {f"{place.name}{part}" for place in at_work.places for part in PLACE}
                names |= {f"{layer.name}{end}" for layer in clipped for end in ENDS}
                search = partial(self._search_block, at_work, clipped, calibration.grid)
                found = calibration.searches.get(block.name, names, search)
                for place in at_work.places:
                    scales, told = (found[f"{place.name}{part}"] for part in PLACE)
                    fold(place, scales.to(adapter.device))
                    exponents[place.name], *errors[place.name] = told.tolist()
                for layer in clipped:
                    low, high = (found[f"{layer.name}{end}"] for end in ENDS)
                    limits[layer.name] = low, high
        adapter.limit(limits)
        return {"exponents": exponents, "errors": errors, "clipped": len(limits)}

    def _clips(self, layer: Layer) -> bool:
        return self.clip and layer.name.rpartition(".")[2] not in UNCLIPPED

    def _search_block(
        self, at_work: PlacesAtWork, clipped: Sequence[Layer], grid: Grid
    ) -> dict[str, Tensor]:
        """Return what the block at work has to know, and leave it as it was.

        That is of each place its scales [channels], and (exponent, error before, error after); of
        each layer that is clipped the ends of its groups, [groups, 1].
        """
        found: dict[str, Tensor] = {}
        with restoring(at_work.work.block.module.parameters()):
            grams, means = _statistics(at_work)
            for place in at_work.places:
                scales, told = self._search(place, grams, means[place.name], grid)
                values = scales, torch.tensor(told, dtype=torch.float64)
                found |= {f"{place.name}{part}": v for part, v in zip(PLACE, values, strict=True)}
                fold(place, scales)  # the next place may scale what this one has
                inputs = scales[place.index].to(torch.float64)
                for layer in place.layers:
                    grams[layer.name] = grams[layer.name] / inputs / inputs[:, None]
            for layer in clipped:
                ends = self._limits(layer, grams, grid)
                found |= {f"{layer.name}{end}": v for end, v in zip(ENDS, ends, strict=True)}
        return found

    def _search(
        self, place: Place, grams: Mapping[str, Tensor], mean: Tensor, grid: Grid
    ) -> tuple[Tensor, tuple[float, float, float]]:
        """Return the best scales [channels], their exponent, and the errors at 0 and at it."""
        chosen, first, best = torch.ones_like(mean), 0.0, (0.0, torch.inf)
        for step in range(self.candidates):
            exponent = step / self.candidates
            scales = scales_of(mean, exponent)
            error = error_of(place, scales, grams, grid)
            first = error if step == 0 else first
            if error < best[1]:
                best, chosen = (exponent, error), scales
        return chosen, (best[0], first, best[1])

    def _limits(
        self, layer: Layer, grams: Mapping[str, Tensor], grid: Grid
    ) -> tuple[Tensor, Tensor]:
        """Return the least and the largest weight of each group, [groups, 1], that is kept."""
        weight, own = output_first(layer.module, weight_of(layer.module)), layer.grid(grid)
        values = own.granularity.group(weight)
        widest, zero_point = MinMax()(values, own)
        shares = [1 - STEP * index for index in range(self.clip_candidates)]
        gram = grams[layer.name]
        share = best_scales(weight, gram, own, widest, zero_point, shares) / widest
        if own.symmetric:
            largest = share * values.abs().amax(dim=1, keepdim=True)
            return -largest, largest
        low, high = MinMax().ends(values, own)
        return share * low, share * high


def scales_of(mean: Tensor, exponent: float) -> Tensor:
    """Return s [channels] = mean|X|^exponent over the middle of its range; 1 at exponent 0."""
    scales = mean.pow(exponent).clamp(min=FLOOR)
    return scales / (scales.max() * scales.min()).sqrt()


def error_of(place: Place, scales: Tensor, grams: Mapping[str, Tensor], grid: Grid) -> float:
    """Return |Q(W diag(s)) diag(s)^-1 X - W X|^2 of place's layers together, a mean over tokens.

    Q rounds to nearest on min-max ranges.
    """
    total = 0.0
    for layer in place.layers:
        weight, own = output_first(layer.module, weight_of(layer.module)).float(), layer.grid(grid)
        inputs = scales[place.index].to(weight)
        values = own.granularity.group(weight * inputs)
        scale, zero_point = MinMax()(values, own)
        rounded = own.nearest(values, scale, zero_point).reshape(weight.shape) / inputs
        change = rounded - weight
        total += ((change @ grams[layer.name][0].float()) * change).sum().item() / 2
    return total


def _statistics(at_work: PlacesAtWork) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return (2 / N X X^T [1, in, in] of each layer, mean|X| [channels] of each place), by name."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def see(place: Place, rows: Tensor) -> None:
        rows = rows.detach().abs().flatten(0, -2).double()
        sums[place.name] = sums.get(place.name, 0) + rows.sum(dim=0)
        counts[place.name] = counts.get(place.name, 0) + len(rows)

    layers: Sequence[Layer] = at_work.work.block.layers
    hessians = Hessians(layers)
    at_work.watch(at_work.places, see, hessians)
    means = {}
    for place in at_work.places:
        inputs = (sums[place.name] / counts[place.name]).float()
        sharing = torch.bincount(place.index, minlength=len(place.rows))
        zeros = torch.zeros(len(place.rows), device=inputs.device)
        means[place.name] = zeros.index_add(0, place.index, inputs) / sharing
    return {layer.name: hessians.of(layer) for layer in layers}, means
