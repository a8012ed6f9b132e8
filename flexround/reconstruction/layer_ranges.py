"""Ranges of a unit's layers, where they weigh by what each layer's inputs are."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from flexround.calibration.calls import RecordedCalls
from flexround.importance import ImportanceSearch
from flexround.ranges import Ranges
from flexround.reconstruction.job import UnitJob
from flexround.reconstruction.unit import Unit
from flexround.structure import Layer, counted


def ranges_of_layers(job: UnitJob, unit: Unit, plain: RecordedCalls) -> dict[str, Ranges]:
    """Return the ranges of the unit's layers, by name, on the inputs that they weigh by if any."""
    search, found = job.ranges, {layer.name: job.ranges for layer in unit.layers}
    if isinstance(search, ImportanceSearch):
        squares = _squares(job, unit, plain)
        found |= {name: search.seeing(own) for name, own in squares.items()}
    return found


@torch.no_grad()
def _squares(job: UnitJob, unit: Unit, plain: RecordedCalls) -> dict[str, Tensor]:
    """Return the sum over tokens of the squares of each layer's inputs, [in], by name.

    The unit computes in full precision still, on full-precision inputs.

    Raises:
        ValueError: for a convolution, each weight of which meets many inputs; names the layer.
    """
    found: dict[str, Tensor] = {}
    handles = []
    tokens: Tensor | None = None  # those of the batch at hand that are no padding
    for layer in unit.layers:
        if cast(Tensor, layer.module.weight).dim() != 2:
            raise ValueError(
                f"layer {layer.name}: ranges=imatrix is for linear layers; give ranges=lp"
            )

        def see(_: nn.Module, args: tuple[Tensor, ...], layer: Layer = layer) -> None:
            seen = counted(layer, args[0], tokens).float()
            own, name = seen.square().flatten(0, -2).sum(dim=0), layer.name
            found[name] = found[name] + own if name in found else own

        handles.append(layer.module.register_forward_pre_hook(see))
    try:
        for batch in torch.arange(job.learned_from(plain)).split(job.settings.batch_size):
            tokens = None if job.mask is None else job.mask[batch]
            plain.replay(unit.module, batch, job.adapter.device)
    finally:
        for handle in handles:
            handle.remove()
    return found
