"""Scales of a weight whose columns are rounded one by one, by column."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from flexround.grid import Grid, PerGroup, QuantizedTensor
from flexround.ranges import Ranges
from flexround.solvers.weight_clipping import Scales, scales_of


class Columns:
    """Scale and zero point of each weight, looked up by column, [out, columns of scales]."""

    def __init__(self, weight: Tensor, grid: Grid, scale: Tensor, zero_point: Tensor) -> None:
        self._grid = grid
        self._grouped = isinstance(grid.granularity, PerGroup)
        view = (len(weight), len(scale) // len(weight)) if self._grouped else (len(scale), 1)
        self._width = weight.shape[1] // view[1]
        self._scale, self._zero = scale.reshape(view).clone(), zero_point.reshape(view).clone()

    def rows(self, rows: slice) -> Columns:
        """Return the columns of some of the rows; what is rescaled there is rescaled here."""
        part = copy.copy(self)
        if len(self._scale) > 1:
            part._scale, part._zero = self._scale[rows], self._zero[rows]
        return part

    def starts_group(self, j: int) -> bool:
        """Return whether column j is the first of a group with a scale of its own."""
        return self._grouped and j % self._width == 0

    def rescale(self, j: int, now: Tensor, hessian: Tensor, ranges: Ranges, scales: Scales) -> None:
        """Choose the scale of the group that starts at column j from the weights as they are."""
        group = slice(j, j + self._width)
        own = hessian[None, group, group]
        scale, zero_point = scales_of(now[:, group].contiguous(), own, self._grid, ranges, scales)
        self._scale[:, j // self._width] = scale[:, 0]
        self._zero[:, j // self._width] = zero_point[:, 0]

    def round(self, column: int, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return (codes, values on the grid) of a column's values [out]."""
        group = column // self._width if self._grouped else 0
        scale, zero = self._scale[:, group], self._zero[:, group]
        codes = self._grid.encode(values, scale, zero)
        return codes, self._grid.decode(codes, scale, zero)

    def quantized(self, codes: Tensor, weight: Tensor) -> QuantizedTensor:
        """Return the codes [out, in] with their scales."""
        scale, zero = self._scale.reshape(-1, 1), self._zero.reshape(-1, 1)
        return QuantizedTensor(codes.to(torch.int16).view(weight.shape), scale, zero, self._grid)
