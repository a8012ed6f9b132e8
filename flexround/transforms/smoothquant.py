"""SmoothQuant (arXiv 2211.10438, eq. 3 and 4): outliers of activations move into the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flexround.models.language_adapter import LanguageAdapter
from flexround.structure import output_first
from flexround.transforms.base import Calibration
from flexround.transforms.places import Place, fold, weight_of
from flexround.transforms.walk import PlacesAtWork, places_walk

FLOOR = 1e-5  # of a maximum: a channel that is never used keeps a finite scale


@dataclass(frozen=True)
class SmoothQuant:
    """s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), X' = X diag(s)^-1, W' = W diag(s).

    Attributes:
        alpha: 0 makes all channels of the weights equally wide, 1 those of the activations.
        places: norms, as in the authors' code, or all: linear layers in front of others too.
    """

    alpha: float
    places: Literal["norms", "all"]

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"transform.alpha={self.alpha}: give a share from 0 to 1")
        if self.places not in ("norms", "all"):
            raise ValueError(f"transform.places={self.places}: give norms or all")

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return "smoothquant"

    def __call__(self, adapter: LanguageAdapter, calibration: Calibration) -> Mapping[str, Any]:
        """Smooth adapter's model and return how many places there were.

        Raises:
            ValueError: when a layer that reads the stream has no norm in front that can be scaled.
        """
        count = 0
        for work in places_walk(adapter, calibration, self.name):
            with work as at_work:
                chosen = [p for p in at_work.places if p.norm or self.places == "all"]
                largest = _largest(at_work, chosen)
                for place in chosen:
                    fold(place, scales_of(place, largest[place.name], self.alpha))
                count += len(chosen)
        return {"places": count}


def scales_of(place: Place, largest: Tensor, alpha: float) -> Tensor:
    """Return s [channels] for the largest |X| of each input of place's layers, [in]."""
    channels = len(place.rows)
    weights = torch.stack(
        [
            output_first(layer.module, weight_of(layer.module)).abs().amax(dim=0)
            for layer in place.layers
        ]
    ).amax(dim=0)
    taken, own = (
        torch.zeros(channels, device=values.device).scatter_reduce(
            0, place.index.to(values.device), values.float(), "amax"
        )
        for values in (largest, weights)
    )
    return (taken.clamp(min=FLOOR) ** alpha / own.clamp(min=FLOOR) ** (1 - alpha)).clamp(min=FLOOR)


def _largest(at_work: PlacesAtWork, places: Sequence[Place]) -> dict[str, Tensor]:
    """Return max|X| of the inputs of each place's layers over the calibration set, [in]."""
    found: dict[str, Tensor] = {}

    def see(place: Place, rows: Tensor) -> None:
        largest = rows.detach().abs().flatten(0, -2).amax(dim=0)
        before = found.get(place.name)
        found[place.name] = largest if before is None else torch.maximum(before, largest)

    at_work.watch(places, see)
    return found
