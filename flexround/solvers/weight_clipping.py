"""Scales of a weight that is to be solved: of the ranges, or clipped to its Hessian (OWC).

Optimal weight clipping (CDQuant, arXiv 2406.17542) shrinks each range by the share that leaves the
smallest output error. The paper's grid of shares is not published; ours is the L_p search's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from flexround.grid import Grid, PerGroup
from flexround.ranges import SCALE_FLOOR, Ranges

Scales = Literal["ranges", "owc"]
SHARES = [1 - 0.01 * index for index in range(80)]


def scales_of(
    weight: Tensor, hessian: Tensor, grid: Grid, ranges: Ranges, scales: Scales
) -> tuple[Tensor, Tensor]:
    """Return (scale, zero_point), [groups of weights, 1], of weight [out, in].

    hessian is [groups of rows, in, in]. A range counts as good as the error that its own weights
    make, those of other groups left as they are.
    """
    values = grid.granularity.group(weight)
    widest, zero_point = ranges(values, grid)
    if scales == "ranges":
        return widest, zero_point
    return best_scales(weight, hessian, grid, widest, zero_point, SHARES), zero_point


def best_scales(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    widest: Tensor,
    zero_point: Tensor,
    shares: Sequence[float],
) -> Tensor:
    """Return the share of widest [groups of weights, 1] that errs least, of weight [out, in]."""
    values, local = grid.granularity.group(weight), _local(hessian, grid)
    best_scale, best_error = widest, torch.full_like(widest, torch.inf, dtype=local.dtype)
    for share in shares:
        scale = grid.admitted((widest * share).clamp(min=SCALE_FLOOR))
        change = grid.nearest(values, scale, zero_point) - values
        error = _error(change.view(weight.shape).to(local.dtype), local, len(scale))
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    return best_scale


def _local(hessian: Tensor, grid: Grid) -> Tensor:
    """Return what weights that share a scale meet, [groups of rows, parts, width, width]."""
    if not isinstance(grid.granularity, PerGroup):
        return hessian[:, None]
    width = grid.granularity.group_size
    parts = hessian.unflatten(2, (-1, width)).unflatten(1, (-1, width))  # [rows, p, w, q, w]
    own: Tensor = parts.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    return own


def _error(change: Tensor, local: Tensor, scales: int) -> Tensor:
    """Return change H change^T summed over the weights of each scale, [scales, 1]."""
    rows = change.view(len(local), -1, *local.shape[1:3]).transpose(1, 2)  # [groups, parts, out, w]
    error = ((rows @ local) * rows).sum(3).transpose(1, 2)  # [groups, out, parts]
    return error.reshape(scales, -1).sum(1, keepdim=True)
