"""CDQuant: coordinate descent on the codes of a row (arXiv 2406.17542), one or all at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flexround.grid import Grid, QuantizedTensor
from flexround.ranges import Ranges
from flexround.solvers.gptq import GPTQ

BLOCK = 128  # columns whose updates of the gradient's rest are put off and done at once


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


@dataclass(frozen=True)
class CDQuant:
    """argmin of (w_hat - w) H (w_hat - w)^T over codes, scales fixed, by coordinate descent.

    Attributes:
        start: where the codes start: rtn, or gptq with that solver's own options.
        mode: cyclic takes all columns in turn, sweep after sweep; greedy in each row the one
            coordinate that gains most.
        sweeps: passes over all columns, or greedy steps in units of a row's length.
        gptq: the solver for start=gptq.
    """

    start: Literal["rtn", "gptq"]
    mode: Literal["cyclic", "greedy"]
    sweeps: float
    gptq: GPTQ

    def __post_init__(self) -> None:
        if self.start not in ("rtn", "gptq"):
            raise ValueError(f"quant.start={self.start}: give rtn or gptq")
        if self.mode not in ("cyclic", "greedy"):
            raise ValueError(f"quant.mode={self.mode}: give cyclic or greedy")
        if not self.sweeps > 0:
            raise ValueError(f"quant.sweeps={self.sweeps}: give a number above 0")

    def check(self, grid: Grid) -> None:
        """Check that the options go with the grid."""
        if self.start == "gptq":
            self.gptq.check(grid)

    def quantize(
        self, weight: Tensor, hessian: Tensor, grid: Grid, ranges: Ranges
    ) -> QuantizedTensor:
        """Return the integers of weight [out, in] for hessian [groups, in, in]."""
        if self.start == "gptq":
            first = self.gptq.quantize(weight, hessian, grid, ranges)
            scale, zero = first.scale, first.zero_point
        else:
            scale, zero = ranges(grid.granularity.group(weight), grid)
            codes = grid.encode(grid.granularity.group(weight), scale, zero)
            first = QuantizedTensor(codes.to(torch.int16).view(weight.shape), scale, zero, grid)
        # float64: the gradient is updated in place thousands of times.
        exact, wide_scale, wide_zero = (
            t.double() for t in (weight, _spread(scale, weight, grid), _spread(zero, weight, grid))
        )
        values = first.dequantize().double()
        descend = self._cyclic if self.mode == "cyclic" else self._greedy
        step = len(weight) // len(hessian)
        for index, own in enumerate(hessian.double()):
            rows = slice(index * step, (index + 1) * step)
            gradient = (values[rows] - exact[rows]) @ own
            descend(values[rows], gradient, own, wide_scale[rows], wide_zero[rows], grid)
        codes = torch.round(values / wide_scale) + wide_zero
        return QuantizedTensor(codes.to(torch.int16), scale, zero, grid)

    def _cyclic(
        self, values: Tensor, gradient: Tensor, hessian: Tensor,
        scale: Tensor, zero: Tensor, grid: Grid,
    ) -> None:  # fmt: skip
        """Move values [out, in], and gradient with them, in place."""
        diagonal = hessian.diagonal()
        for _ in range(round(self.sweeps)):
            before = values.clone()
            for start in range(0, len(hessian), BLOCK):
                columns = slice(start, min(start + BLOCK, len(hessian)))
                local, moved = gradient[:, columns].clone(), torch.zeros_like(values[:, columns])
                for j in range(columns.start, columns.stop):
                    new = best_values(
                        values[:, j],
                        local[:, j - start],
                        diagonal[j],
                        scale[:, j],
                        zero[:, j],
                        grid,
                    )
                    moved[:, j - start] = new - values[:, j]
                    local += moved[:, j - start, None] * hessian[j, columns]
                    values[:, j] = new
                gradient += moved @ hessian[columns]
            if torch.equal(values, before):
                return

    def _greedy(
        self, values: Tensor, gradient: Tensor, hessian: Tensor,
        scale: Tensor, zero: Tensor, grid: Grid,
    ) -> None:  # fmt: skip
        """Move values [out, in], and gradient with them, in place."""
        diagonal = hessian.diagonal()
        rows = torch.arange(len(values), device=values.device)
        for _ in range(round(self.sweeps * len(hessian))):
            move = best_values(values, gradient, diagonal, scale, zero, grid) - values
            effect = move * (move * diagonal + 2 * gradient)  # change of the objective, [out, in]
            best = effect.argmin(dim=1)
            gains = effect[rows, best] < 0
            if not gains.any():
                return
            step = torch.where(gains, move[rows, best], 0.0)
            values[rows, best] += step
            gradient += step[:, None] * hessian[best]


def _spread(shared: Tensor, weight: Tensor, grid: Grid) -> Tensor:
    """Return a scale or zero point [groups, 1] for each weight, [out, in]."""
    return shared.expand_as(grid.granularity.group(weight)).reshape(weight.shape)
