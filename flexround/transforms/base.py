"""Contract of a transform: an exact change of the full-precision network, before any quantizer.

The transformed network is an ordinary one: what a transform finds is folded into its weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from flexround.calibration.activation_cache import ActivationCache
from flexround.grid import Grid
from flexround.models.base import ModelAdapter
from flexround.models.language_adapter import LanguageAdapter
from flexround.models.offloaded_adapter import OffloadedAdapter

# Largest |logits after - before| / |logits before| of a network: sums in another order, and
# weights that are rounded once more where they are stored in half precision. In bfloat16 that was
# 0.003 to 0.015 for networks of two layers and 0.016 for one of thirty; an eighth in float16.
TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2
TOLD = 2.5e-2  # the change that a user is to know of
log = logging.getLogger(__name__)


class Searches:
    """Has each block searched; a subclass may find what another run's search has found."""

    def get(
        self, block: str, names: Set[str], search: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return what search finds of the block called so: tensors of these names.

        It depends on the network, the transform and the samples and grid of `Calibration` alone,
        draws nothing, and leaves the block as it was.
        """
        return search()


@dataclass(frozen=True)
class Calibration:
    """What a transform may look at.

    Attributes:
        batches: as adapter.forward takes them.
        batch_size: calibration samples that pass a block at once.
        grid: the grid that weights will be on.
        cache: how the activations of the calibration set are held.
        generator: of what is drawn.
        searches: where what takes long to find of a block may be kept.
    """

    batches: Sequence[Any]
    batch_size: int
    grid: Grid
    cache: ActivationCache
    generator: torch.Generator
    searches: Searches = field(default_factory=Searches)


class Transform(Protocol):
    """Changes a network in place and leaves its function as it is."""

    @property
    def name(self) -> str:
        """What the command line calls it."""
        ...

    def __call__(self, adapter: LanguageAdapter, calibration: Calibration) -> Mapping[str, Any]:
        """Transform adapter's model and return what there is to say of it, as JSON values.

        Raises:
            ValueError: when the change would not be exact on a layer; names it.
        """
        ...


def check_kind(transform: Transform, kind: str | None, offload: bool) -> None:
    """Check that a model of kind is one that transforms are for, and whole in memory.

    Raises:
        ValueError: when it is not.
    """
    if kind == "vision":
        raise ValueError(
            f"transform={transform.name} folds into the norms and linear layers of a transformer "
            "language model, and this model is one of vision (convolutions, or ViT blocks); give "
            "transform=none, or model.equalize=true where the model has it"
        )
    if offload:
        raise ValueError(
            f"transform={transform.name} needs the whole network in memory; give offload=false"
        )


def apply(transform: Transform, adapter: ModelAdapter, calibration: Calibration) -> dict[str, Any]:
    """Transform adapter's model in place; return what there is to say, and how exact it was.

    A warning tells of a network in half precision that the rounding of its weights changes.

    Raises:
        ValueError: when the transform is not for the network, or its logits change.
    """
    known = isinstance(adapter, LanguageAdapter)
    check_kind(transform, None if known else "vision", isinstance(adapter, OffloadedAdapter))
    assert isinstance(adapter, LanguageAdapter), "every other model is one of vision"
    sample = first_sample(calibration.batches)
    before = _logits(adapter, sample)
    found = dict(transform(adapter, calibration))
    change = relative(_logits(adapter, sample), before)
    dtype = next(adapter.model.parameters()).dtype
    half = dtype not in (torch.float32, torch.float64)
    most = HALF_TOLERANCE if half else TOLERANCE
    told = (
        f"transform={transform.name} changes the logits of {type(adapter.model).__name__} by "
        f"{change:.1e} of their norm"
    )
    kind = str(dtype).removeprefix("torch.")
    if not change <= most:
        coarse = f", or {kind} is too coarse for its depth" if half else ""
        raise ValueError(
            f"{told}, where {most:.0e} is rounding: the network is built otherwise than the "
            f"transform takes it{coarse}; give transform=none"
            f"{', or a checkpoint in float32' if half else ''}"
        )
    if change > TOLD:
        log.warning("%s: its weights are rounded to %s once more", told, kind)
    return {"name": transform.name, "change_of_logits": change, **found}


def first_sample(batches: Sequence[Any]) -> Any:
    """Return a batch of the first calibration sample alone."""
    return {name: values[:1] for name, values in batches[0].items()}


def relative(values: Tensor, expected: Tensor) -> float:
    """Return |values - expected| / |expected|."""
    return float((values - expected).norm() / expected.norm().clamp(min=1e-30))


@torch.no_grad()
def _logits(adapter: LanguageAdapter, sample: Any) -> Tensor:
    logits = adapter.forward(sample).double()
    adapter.model.to(adapter.storage_device)
    return logits.cpu()
