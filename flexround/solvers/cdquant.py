"""CDQuant: coordinate descent on the codes of a row (arXiv 2406.17542), by columns or pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flexround.cost import Cost
from flexround.grid import Grid, QuantizedTensor
from flexround.ranges import Ranges
from flexround.solvers.coordinate_descent import Rows, move_one, move_pair, sweep
from flexround.solvers.gptq import GPTQ
from flexround.solvers.weight_clipping import scales_of

# Partitions into pairs that must bring nothing, one after the other, before the search ends.
PATIENCE = 5

Watch = Callable[[float], None]


@dataclass(frozen=True)
class CDQuant:
    """argmin of (w_hat - w) H (w_hat - w)^T over codes, scales fixed, by coordinate descent.

    Holds seven float64 copies of a weight and its Hessian.

    Attributes:
        start: where codes and scales start: rtn, owc (scales clipped to the Hessian), or gptq with
            that solver's own options.
        mode: cyclic takes all columns in turn, sweep after sweep; greedy takes in each row the
            coordinate that gains most; pairs the pair that does, of a new random partition for
            every step (block coordinate descent).
        sweeps: passes over all columns, or steps in units of a row's length.
        seed: of the partitions.
        gptq: the solver for start=gptq.
    """

    start: Literal["rtn", "owc", "gptq"]
    mode: Literal["cyclic", "greedy", "pairs"]
    sweeps: float
    seed: int
    gptq: GPTQ

    def __post_init__(self) -> None:
        if self.start not in ("rtn", "owc", "gptq"):
            raise ValueError(f"quant.start={self.start}: give rtn, owc or gptq")
        if self.mode not in ("cyclic", "greedy", "pairs"):
            raise ValueError(f"quant.mode={self.mode}: give cyclic, greedy or pairs")
        if not self.sweeps > 0:
            raise ValueError(f"quant.sweeps={self.sweeps}: give a number above 0")

    def check_grid(self, grid: Grid) -> None:
        """Check that the options go with the grid."""
        if self.start == "gptq":
            self.gptq.check_grid(grid)

    def cost(self, out: int, into: int, steps: int) -> Cost:
        """Return the cost of a weight [out, in] after steps: the gradient, and its updates."""
        update = 2.0 * out * into**2 if self.mode == "cyclic" else 2.0 * out * into
        own = Cost(
            state_bytes=8 * into**2 + 7 * 8 * out * into,
            flops=2.0 * out * into**2 + steps * update,
        )
        if self.start != "gptq":
            return own
        first = self.gptq.cost(out, into)
        return Cost(0, max(own.state_bytes, first.state_bytes), own.flops + first.flops)

    def quantize(
        self,
        weight: Tensor,
        hessian: Tensor,
        grid: Grid,
        ranges: Ranges,
        watch: Watch | None = None,
    ) -> QuantizedTensor:
        """Return the integers of weight [out, in] for hessian [groups, in, in].

        With one group watch is told the objective at the start and after every step.
        """
        first = self._first(weight, hessian, grid, ranges)
        # float64: the gradient is updated in place thousands of times.
        exact, scale, zero = (
            t.double()
            for t in (weight, _spread(first.scale, first), _spread(first.zero_point, first))
        )
        values = grid.decode(first.codes, scale, zero)
        step = len(weight) // len(hessian)
        for index, own in enumerate(hessian.double()):
            part = slice(index * step, (index + 1) * step)
            gradient = (values[part] - exact[part]) @ own
            rows = Rows(
                exact[part], values[part], gradient, own, scale[part], zero[part], grid
            )  # fmt: skip
            self._descend(rows, watch if watch is not None and len(hessian) == 1 else None)
        codes = grid.encode(values, scale, zero)
        return QuantizedTensor(codes.to(torch.int16), first.scale, first.zero_point, grid)

    def _first(
        self, weight: Tensor, hessian: Tensor, grid: Grid, ranges: Ranges
    ) -> QuantizedTensor:
        if self.start == "gptq":
            return self.gptq.quantize(weight, hessian, grid, ranges)
        kind: Literal["owc", "ranges"] = "owc" if self.start == "owc" else "ranges"
        scale, zero = scales_of(weight, hessian, grid, ranges, kind)
        codes = grid.encode(grid.granularity.group(weight), scale, zero)
        return QuantizedTensor(codes.to(torch.int16).view(weight.shape), scale, zero, grid)

    def _descend(self, rows: Rows, watch: Watch | None) -> None:
        into = len(rows.hessian)
        draws = torch.Generator().manual_seed(self.seed)
        steps, patience = round(self.sweeps * into), 1
        if self.mode == "cyclic":
            steps = round(self.sweeps)
        elif self.mode == "pairs":
            patience = PATIENCE
        if watch is not None:
            watch(rows.objective())
        idle = 0
        for _ in range(steps):
            if self.mode == "cyclic":
                moved = sweep(rows)
            elif self.mode == "greedy":
                moved = move_one(rows)
            else:
                moved = move_pair(rows, torch.randperm(into, generator=draws))
            idle = 0 if moved else idle + 1
            if watch is not None and moved:
                watch(rows.objective())
            if idle == patience:
                return


def _spread(shared: Tensor, first: QuantizedTensor) -> Tensor:
    """Return a scale or zero point [groups, 1] for each weight, [out, in]."""
    codes = first.codes
    return shared.expand_as(first.grid.granularity.group(codes)).reshape(codes.shape)
