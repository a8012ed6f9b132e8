"""Contract of a solver, which rounds one weight against its Hessian, and a layer solved by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from flexround.attach import bake
from flexround.cost import Cost
from flexround.grid import Grid, QuantizedTensor
from flexround.ranges import Ranges
from flexround.solvers.hessian import Drift, Hessians, objective
from flexround.structure import Layer, output_first


class Solver(Protocol):
    """Rounds one weight against its Hessian."""

    def check_grid(self, grid: Grid) -> None:
        """Check that the options go with the grid."""
        ...

    def cost(self, out: int, into: int, steps: int) -> Cost:
        """Return what solving a weight [out, in] in steps has cost."""
        ...

    def quantize(
        self,
        weight: Tensor,
        hessian: Tensor,
        grid: Grid,
        ranges: Ranges,
        watch: Callable[[float], None] | None = None,
    ) -> QuantizedTensor:
        """Return the integers of weight [out, in] for hessian [groups, in, in].

        watch is told the objective where the search starts and after each of its steps.
        """
        ...


@runtime_checkable
class DriftSolver(Solver, Protocol):
    """Rounds one weight so that it meets the full-precision network's output on its own inputs."""

    def quantize_on_drift(
        self, weight: Tensor, hessian: Tensor, drift: Drift, grid: Grid, ranges: Ranges
    ) -> QuantizedTensor:
        """Return the integers of weight [out, in] for hessian [groups, in, in] and the drift."""
        ...


@dataclass(frozen=True)
class Solution:
    """One solved layer.

    Attributes:
        objectives: mean squared error of an output, summed over outputs: of round-to-nearest on
            the same scales, where the search starts and after each step, and of the integers.
        reached: whether a calibration token was sent there; an expert that saw none is rounded to
            nearest and has no objectives.
    """

    layer: str
    integers: QuantizedTensor
    objectives: list[float]
    cost: Cost
    reached: bool = True


def solve_layer(
    layer: Layer, hessians: Hessians, solver: Solver, grid: Grid, ranges: Ranges
) -> Solution:
    """Write layer's quantized weight and return what was found.

    Raises:
        ValueError: when the layer can't be solved; names it.
    """
    own = layer.grid(grid)
    layer.clip(own)
    weight = output_first(layer.module, cast(nn.Parameter, layer.module.weight))
    flat = weight.detach().flatten(1).contiguous()
    if layer.expert is not None and not hessians.reached(layer):
        integers = _nearest(weight.detach(), *ranges(own.granularity.group(flat), own), own)
        bake(layer, integers)
        return Solution(layer.name, integers, [], Cost(), reached=False)
    hessian = hessians.of(layer)
    if not torch.isfinite(hessian).all():
        raise ValueError(
            f"layer {layer.name}: what it takes of the calibration data is not finite, though the "
            "block's inputs are"
        )
    steps: list[float] = []
    drift = hessians.drift(layer) if isinstance(solver, DriftSolver) else None
    try:
        if isinstance(solver, DriftSolver) and drift is not None:
            found = solver.quantize_on_drift(flat, hessian, drift, own, ranges)
        else:
            found = solver.quantize(flat, hessian, own, ranges, steps.append)
        _check(found, solver)
    except ValueError as error:
        raise ValueError(f"layer {layer.name}: {error}") from error
    nearest = _nearest(flat, found.scale, found.zero_point, own)
    ends = [objective(flat, q.dequantize(), hessian, drift).sum().item() for q in (nearest, found)]
    integers = QuantizedTensor(found.codes.view(weight.shape), found.scale, found.zero_point, own)
    bake(layer, integers)
    cost = solver.cost(len(flat), flat.shape[1], len(steps))
    cost += Cost(flops=hessians.flops(layer))
    return Solution(layer.name, integers, [ends[0], *steps, ends[1]], cost)


def _check(found: QuantizedTensor, solver: Solver) -> None:
    """Check that what solver has found are integers of their grid.

    Raises:
        ValueError: says what is not.
    """
    try:
        found.check()
    except ValueError as error:
        raise ValueError(f"{type(solver).__name__} gave {error}") from error


def _nearest(weight: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> QuantizedTensor:
    """Return weight rounded to nearest on given scales."""
    codes = grid.encode(grid.granularity.group(weight), scale, zero_point)
    return QuantizedTensor(codes.to(torch.int16).view(weight.shape), scale, zero_point, grid)
