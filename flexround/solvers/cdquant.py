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
from flexround.solvers.gptq import GPTQ
from flexround.solvers.scales import scales_of

BLOCK = 32  # columns whose updates of the gradient's rest are put off and done at once
# Partitions into pairs that must bring nothing, one after the other, before the search ends.
PATIENCE = 5

Watch = Callable[[float], None]


def best_values(
    values: Tensor, gradient: Tensor, curvature: Tensor, scale: Tensor, zero: Tensor, grid: Grid
) -> Tensor:
    """Return the grid's values that minimise each coordinate's parabola with the others fixed.

    With g = (w_hat - w) H and curvature H_jj the unconstrained minimum is w_hat_j - g_j / H_jj;
    the best level is the one nearest to it. A coordinate without curvature keeps its value.
    """
    target = values - gradient / curvature.clamp(min=torch.finfo(curvature.dtype).tiny)
    found = (grid.encode(target, scale, zero) - zero) * scale
    return torch.where(curvature > 0, found, values)


@dataclass
class _Rows:
    """Rows of one Hessian, all in float64 and moved in place.

    Attributes:
        exact: the weights, [out, in].
        values: what stands for them, on the grid.
        gradient: (values - exact) H.
    """

    exact: Tensor
    values: Tensor
    gradient: Tensor
    hessian: Tensor
    scale: Tensor
    zero: Tensor
    grid: Grid

    def objective(self) -> float:
        """Return the sum of (w_hat - w) H (w_hat - w)^T / 2."""
        return ((self.values - self.exact) * self.gradient).sum().item() / 2

    def best(self, columns: Tensor | int, gradient: Tensor) -> Tensor:
        """Return the best values of columns for their gradient, each with the others fixed."""
        curvature = self.hessian.diagonal()[columns]
        scale, zero = self.scale[:, columns], self.zero[:, columns]
        return best_values(self.values[:, columns], gradient, curvature, scale, zero, self.grid)

    def put(self, column: Tensor, new: Tensor) -> None:
        """Put one new value into each row, both [out, 1], at its own column."""
        move = new - self.values.gather(1, column)
        # Put, not added: the sum may miss the level, and the rest would count as another move.
        self.values.scatter_(1, column, new)
        self.gradient += move * self.hessian[column[:, 0]]


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

    def check(self, grid: Grid) -> None:
        """Check that the options go with the grid."""
        if self.start == "gptq":
            self.gptq.check(grid)

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
        values = (first.codes - zero) * scale
        step = len(weight) // len(hessian)
        for index, own in enumerate(hessian.double()):
            part = slice(index * step, (index + 1) * step)
            gradient = (values[part] - exact[part]) @ own
            rows = _Rows(
                exact[part], values[part], gradient, own, scale[part], zero[part], grid
            )  # fmt: skip
            self._descend(rows, watch if watch is not None and len(hessian) == 1 else None)
        codes = torch.round(values / scale) + zero
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

    def _descend(self, rows: _Rows, watch: Watch | None) -> None:
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


def sweep(rows: _Rows) -> bool:
    """Give each column in turn its best values; return whether any has moved."""
    into, any_moved = len(rows.hessian), False
    for start in range(0, into, BLOCK):
        columns = slice(start, min(start + BLOCK, into))
        local = rows.gradient[:, columns].clone()
        moved = torch.zeros_like(local)
        for j in range(columns.start, columns.stop):
            new = rows.best(j, local[:, j - start])
            moved[:, j - start] = new - rows.values[:, j]
            local.addr_(moved[:, j - start], rows.hessian[j, columns])
            rows.values[:, j] = new
        rows.gradient += moved @ rows.hessian[columns]
        any_moved = any_moved or bool(moved.any())
    return any_moved


def move_one(rows: _Rows) -> bool:
    """Move in each row the one coordinate that gains most; return whether any row gains."""
    every = torch.arange(len(rows.hessian), device=rows.values.device)
    new = rows.best(every, rows.gradient)
    move = new - rows.values
    effect = move * (move * rows.hessian.diagonal() + 2 * rows.gradient)  # on the objective
    gain, best = effect.min(dim=1, keepdim=True)
    gains = gain < 0
    rows.put(best, torch.where(gains, new, rows.values).gather(1, best))
    return bool(gains.any())


def move_pair(rows: _Rows, order: Tensor) -> bool:
    """Move in each row the pair of order's partition that gains most.

    For each level of a pair's first coordinate the best of the second has a closed form, so that
    all 4^bits combinations are searched in 2^bits steps.
    """
    half = len(order) // 2
    a, b = order[:half].to(rows.values.device), order[half : 2 * half].to(rows.values.device)
    diagonal, across = rows.hessian.diagonal(), rows.hessian[a, b]
    grad_a, grad_b = rows.gradient[:, a], rows.gradient[:, b]
    held_a, held_b = rows.values[:, a], rows.values[:, b]
    scale, zero = rows.scale[:, a], rows.zero[:, a]
    best = torch.zeros_like(held_a)
    new_a, new_b = held_a, held_b
    for level in range(rows.grid.qmin, rows.grid.qmax + 1):
        level_a = (level - zero) * scale
        move_a = level_a - held_a
        grad = grad_b + move_a * across
        level_b = rows.best(b, grad)
        move_b = level_b - held_b
        effect = move_a * (move_a * diagonal[a] + 2 * grad_a)
        effect += move_b * (move_b * diagonal[b] + 2 * grad)
        better = effect < best
        best = torch.where(better, effect, best)
        new_a = torch.where(better, level_a, new_a)
        new_b = torch.where(better, level_b, new_b)
    gain, pair = best.min(dim=1, keepdim=True)
    rows.put(a[pair], new_a.gather(1, pair))
    rows.put(b[pair], new_b.gather(1, pair))
    return bool((gain < 0).any())


def _spread(shared: Tensor, first: QuantizedTensor) -> Tensor:
    """Return a scale or zero point [groups, 1] for each weight, [out, in]."""
    codes = first.codes
    return shared.expand_as(first.grid.granularity.group(codes)).reshape(codes.shape)
