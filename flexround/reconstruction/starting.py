"""Learned rounding that starts in a solver's codes in place of the nearest ones.

GPTQ rounds each layer of a unit against its inputs on the quantized prefix. Each weight is then
moved to the nearest place that lies well inside of its code's cell, and the method learns from
there as it does from any weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from flexround.calibration.calls import RecordedCalls
from flexround.cost import Cost
from flexround.grid import Grid, QuantizedTensor
from flexround.ranges import Ranges
from flexround.reconstruction.job import UnitJob
from flexround.reconstruction.unit import Unit
from flexround.solvers.gptq import GPTQ
from flexround.solvers.hessian import Hessians
from flexround.structure import output_first

# In steps of the grid, of the half that a cell has on either side. Close to its border a weight is
# rounded to the other side by the first steps of learning, whatever they are for; in the middle
# learning could move none. By the calibration error of SmolLM2's first blocks at two bits 0.2 and
# 0.3 are level, 0.1 and 0.45 are behind.
REACH = 0.2
# Scales are the unit's own, found on its weights as they came, whatever the order of columns.
SOLVER = GPTQ(
    block_size=128, damp=0.01, act_order=True, static_groups=True, stale_scales=False,
    scales="ranges",
)  # fmt: skip


class RangesOf:
    """What ranges give for values [groups, elements], found once, whatever values are asked about.

    They are asked on one grid alone, that of the layer.
    """

    def __init__(
        self, ranges: Ranges, values: Tensor, found: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Take found, where it is known, for what ranges would give as (scale, zero_point)."""
        self._ranges, self._values, self._found = ranges, values, found
        self._ends: tuple[Tensor, Tensor] | None = None

    def ends(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the (low, high) of the values that are held, [groups, 1]."""
        if self._ends is None:
            self._ends = self._ranges.ends(self._values, grid)
        return self._ends

    def __call__(self, values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the (scale, zero_point) of the values that are held, [groups, 1]."""
        if self._found is None:
            self._found = self._ranges(self._values, grid)
        return self._found


@torch.no_grad()
def start_from_gptq(
    job: UnitJob, unit: Unit, inputs: RecordedCalls, ranges: Mapping[str, Ranges]
) -> tuple[dict[str, Ranges], Cost]:
    """Move the weights of unit's layers into the cells of GPTQ's codes.

    inputs are the calls that the unit learns from, its weights still as they came. ranges are those
    of its layers, by name. Return ranges that hold to what these give for the weights as they came,
    and what it has cost. An expert that no token is sent to stays as it is.

    Raises:
        ValueError: when a layer can't be solved; names it.
    """
    hessians, device = Hessians(unit.layers), job.adapter.device
    for batch in torch.arange(job.learned_from(inputs)).split(job.settings.batch_size):
        with hessians.collecting(None if job.mask is None else job.mask[batch]):
            inputs.replay(unit.module, batch, device)
    held, cost = dict(ranges), Cost()
    for layer in unit.layers:
        if layer.expert is not None and not hessians.reached(layer):
            continue
        grid = layer.grid(job.grid)
        layer.clip(grid)
        weight = output_first(layer.module, cast(nn.Parameter, layer.module.weight))
        first = weight.clone(memory_format=torch.contiguous_format)
        values = grid.granularity.group(first)
        held[layer.name] = RangesOf(ranges[layer.name], values)
        start = job.quantizer(first, grid=grid, ranges=held[layer.name])
        own = start.dequantization_scale(), start.dequantization_zero_point()
        scales = RangesOf(held[layer.name], values, own)
        hessian = hessians.of(layer)
        try:
            found = SOLVER.quantize(first.flatten(1), hessian, grid, scales)
        except ValueError as error:
            raise ValueError(f"recon.start=gptq: layer {layer.name}: {error}") from error
        moved = inside_of_cells(values, found).view(first.shape).flatten(1)
        # GPTQ makes 0 of the weights of an input that no sample excites, and learning would never
        # bring them back: [groups, in] -> [out, in].
        unseen = (hessian.diagonal(dim1=-2, dim2=-1) == 0).repeat_interleave(
            len(first) // len(hessian), dim=0
        )
        weight.copy_(torch.where(unseen, first.flatten(1), moved).view(weight.shape))
        cost += SOLVER.cost(len(first), first[0].numel()) + Cost(flops=hessians.flops(layer))
    return held, cost


def inside_of_cells(values: Tensor, found: QuantizedTensor) -> Tensor:
    """Return the values nearest to values, [groups, elements], within REACH of found's codes.

    The grid's first and last code reach without end on the outside.
    """
    grid = found.grid
    codes = found.codes.view(values.shape).to(values)
    steps = values / found.scale + found.zero_point
    low = torch.where(codes > grid.qmin, codes - REACH, -torch.inf)
    high = torch.where(codes < grid.qmax, codes + REACH, torch.inf)
    moved = torch.minimum(torch.maximum(steps, low), high)
    # Those that stay keep their last bit.
    return torch.where(moved == steps, values, (moved - found.zero_point) * found.scale)
