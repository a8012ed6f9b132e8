"""The moves of coordinate descent: a sweep over all columns, one coordinate, or a pair.

CDQuant (arXiv 2406.17542); the sweep is QuantEase's (arXiv 2309.01885).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flexround.grid import Grid

BLOCK = 32  # columns whose updates of the gradient's rest are put off and done at once


def best_values(
    values: Tensor, gradient: Tensor, curvature: Tensor, scale: Tensor, zero: Tensor, grid: Grid
) -> Tensor:
    """Return the grid's values that minimise each coordinate's parabola with the others fixed.

    With g = (w_hat - w) H and curvature H_jj the unconstrained minimum is w_hat_j - g_j / H_jj;
    the best level is the one nearest to it. A coordinate without curvature keeps its value.
    """
    target = values - gradient / curvature.clamp(min=torch.finfo(curvature.dtype).tiny)
    found = grid.nearest(target, scale, zero)
    return torch.where(curvature > 0, found, values)


@dataclass
class Rows:
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


def sweep(rows: Rows) -> bool:
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


def move_one(rows: Rows) -> bool:
    """Move in each row the one coordinate that gains most; return whether any row gains."""
    every = torch.arange(len(rows.hessian), device=rows.values.device)
    new = rows.best(every, rows.gradient)
    move = new - rows.values
    effect = move * (move * rows.hessian.diagonal() + 2 * rows.gradient)  # on the objective
    gain, best = effect.min(dim=1, keepdim=True)
    gains = gain < 0
    rows.put(best, torch.where(gains, new, rows.values).gather(1, best))
    return bool(gains.any())


def move_pair(rows: Rows, order: Tensor) -> bool:
    """Move in each row the pair of order's partition that gains most.

    For each level of a pair's first coordinate the best of the second has a closed form, so that
    all 4^bits combinations are searched in 2^bits steps.
    """
    half = len(order) // 2
    if not half:  # one coordinate has no other
        return move_one(rows)
    a, b = order[:half].to(rows.values.device), order[half : 2 * half].to(rows.values.device)
    diagonal, across = rows.hessian.diagonal(), rows.hessian[a, b]
    grad_a, grad_b = rows.gradient[:, a], rows.gradient[:, b]
    held_a, held_b = rows.values[:, a], rows.values[:, b]
    scale, zero = rows.scale[:, a], rows.zero[:, a]
    best = torch.zeros_like(held_a)
    new_a, new_b = held_a, held_b
    for code in range(rows.grid.qmin, rows.grid.qmax + 1):
        level_a = rows.grid.decode(torch.full_like(held_a, code), scale, zero)
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
