"""GPTQ: round column by column, the rest of the row making up for it (arXiv 2210.17323)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flexround.cost import Cost
from flexround.grid import Grid, PerGroup, QuantizedTensor
from flexround.ranges import Ranges
from flexround.solvers.columns import Columns
from flexround.solvers.hessian import Drift
from flexround.solvers.weight_clipping import Scales, scales_of

DAMPINGS = 3  # tries, each with ten times the damping of the one before


def inverse_factor(hessian: Tensor, damp: float, of: Tensor | None = None) -> Tensor:
    """Return the upper U [in, in] with (H + damping)^-1 = U^T U.

    damp is a share of the mean diagonal, or of what of says; it grows tenfold where H is not
    positive definite.

    Raises:
        ValueError: when the largest damping does not help.
    """
    whole = hessian.diagonal().mean() if of is None else of
    for attempt in range(DAMPINGS):
        # In place, and let go of: each of these matrices is gigabytes for the widest layers.
        damped = hessian.clone()
        damped.diagonal().add_(damp * 10**attempt * whole)
        lower, failed = torch.linalg.cholesky_ex(damped)
        del damped
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            del lower
            upper: Tensor
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper
    raise ValueError(
        "its Hessian is not positive definite even with damping "
        f"{damp * 10 ** (DAMPINGS - 1) * whole.item():.3g}; raise quant.damp or num_samples"
    )


@dataclass(frozen=True)
class Correction:
    """What the drift of a layer's inputs adds to GPTQ, columns in the order of their rounding.

    Attributes:
        pull: U' [in, in], strictly upper: rounding column j adds w_j U'_j to the columns behind.
        shift: [out, in], added to the weight before the first column is rounded.
        aim: [out], what the first column is rounded from in place of its weight.
    """

    pull: Tensor | None = None
    shift: Tensor | None = None
    aim: Tensor | None = None


@dataclass(frozen=True)
class GPTQ:
    """W_hat minimises |W X - W_hat X|^2 greedily: e_j = (w_j - w_hat_j) / U_jj, w -= e_j U_j.

    Attributes:
        block_size: columns whose updates of the rest are put off and done at once.
        damp: share of the mean diagonal that is added to H.
        act_order: columns in falling order of H's diagonal.
        static_groups: group scales from the original weight, not from the updated one.
        stale_scales: group scales without the updates of their own block of columns, as the
            authors' code has them; a few percent worse with groups smaller than a block.
        scales: those of ranges=, or clipped to the Hessian (owc).
    """

    block_size: int
    damp: float
    act_order: bool
    static_groups: bool
    stale_scales: bool
    scales: Scales

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"quant.block_size={self.block_size}: give at least 1")
        if not self.damp > 0:
            raise ValueError(f"quant.damp={self.damp}: give a share above 0")
        if self.scales not in ("ranges", "owc"):
            raise ValueError(f"quant.scales={self.scales}: give ranges or owc")
        if self.static_groups and self.stale_scales:
            raise ValueError("quant.stale_scales=true does nothing with quant.static_groups=true")

    def check_grid(self, grid: Grid) -> None:
        """Check that the options go with the grid.

        Raises:
            ValueError: when groups would not be contiguous.
        """
        grouped = isinstance(grid.granularity, PerGroup)
        if grouped and self.act_order and not self.static_groups:
            raise ValueError(
                "quant.act_order=true visits columns out of order, and their groups would not be "
                "contiguous; give quant.static_groups=true as well"
            )

    def cost(self, out: int, into: int, steps: int = 0) -> Cost:
        """Return the cost of a weight [out, in]: two factors, an inverse, the updates."""
        return Cost(
            state_bytes=3 * 8 * into**2 + 12 * out * into, flops=4 / 3 * into**3 + out * into**2
        )

    def quantize(
        self,
        weight: Tensor,
        hessian: Tensor,
        grid: Grid,
        ranges: Ranges,
        watch: Callable[[float], None] | None = None,
    ) -> QuantizedTensor:
        """Return the integers of weight [out, in] for hessian [groups, in, in].

        There are no steps to watch.

        Raises:
            ValueError: when a Hessian can't be inverted.
        """
        return self._quantize(weight, hessian, None, grid, ranges)

    def _quantize(
        self, weight: Tensor, hessian: Tensor, drift: Drift | None, grid: Grid, ranges: Ranges
    ) -> QuantizedTensor:
        dead = hessian.diagonal(dim1=1, dim2=2) == 0  # [groups, in]
        parts = weight.reshape(len(hessian), -1, weight.shape[1]).clone()
        parts.masked_fill_(dead[:, None], 0)  # before the scales, which they would inflate
        clean = parts.view(weight.shape)
        if isinstance(grid.granularity, PerGroup) and not self.static_groups:
            # Each group's are chosen when its first column is rounded.
            first = (clean.new_empty(clean.numel() // grid.granularity.group_size, 1),) * 2
        else:
            first = scales_of(clean, hessian, grid, ranges, self.scales)
        wide = Columns(clean, grid, *first)
        codes = torch.empty_like(clean)
        for index, (part, own) in enumerate(zip(parts, hessian, strict=True)):
            own = own + torch.diag(dead[index].to(own.dtype))
            rows = slice(index * len(part), (index + 1) * len(part))
            across = None if drift is None else drift.across[index]
            lost = None
            if drift is not None and dead[index].any():
                lost = weight.reshape(parts.shape)[index] - part
            codes[rows] = self._solve(part, lost, own, across, wide.rows(rows), ranges)
        return wide.quantized(codes, weight)

    def _factor(self, hessian: Tensor) -> Tensor:
        return inverse_factor(hessian, self.damp)

    def _correct(
        self, weight: Tensor, lost: Tensor | None, hessian: Tensor, across: Tensor, factor: Tensor
    ) -> Correction:
        """Return what across, the drift's, adds; columns are in the order of their rounding.

        weight [out, in] is 0 in the columns whose input is always zero in X. lost [out, in] has the
        original weight in these and 0 in all others, None without any: where the input is not zero
        in X_fp, W X_fp has a part of it.
        """
        return Correction()

    def _solve(
        self,
        weight: Tensor,
        lost: Tensor | None,
        hessian: Tensor,
        across: Tensor | None,
        columns: Columns,
        ranges: Ranges,
    ) -> Tensor:
        """Return the codes of weight [out, in]; lost is that of `_correct`, in the order given."""
        into = weight.shape[1]
        order = torch.arange(into, device=weight.device)
        if self.act_order:
            order = hessian.diagonal().argsort(descending=True)
        ordered, places = hessian[order][:, order], order.cpu().tolist()  # read once
        exact_factor = self._factor(ordered)
        factor = exact_factor.to(weight.dtype)
        rest, codes = weight[:, order].clone(), torch.empty_like(weight.T)
        correction = Correction()
        if across is not None:
            across = across[order][:, order]
            gone = None if lost is None else lost[:, order].double()
            correction = self._correct(rest.double(), gone, ordered, across, exact_factor)
        if correction.shift is not None:
            rest += correction.shift.to(rest.dtype)
        pull = None if correction.pull is None else correction.pull.to(weight.dtype)
        for start in range(0, into, self.block_size):
            end = min(start + self.block_size, into)
            # Columns as rows, which lie together in memory.
            block = rest[:, start:end].T.contiguous()
            put_off = [(torch.empty_like(block), factor)]
            if pull is not None:
                put_off.append((torch.empty_like(block), -pull))
            for j in range(start, end):
                if columns.starts_group(j) and not self.static_groups:
                    now = rest
                    if not self.stale_scales:
                        # What this block of columns has put off, for a group that reaches beyond.
                        pending = _sum(put_off, start, j, end)
                        now = torch.cat([rest[:, :start], block.T, rest[:, end:] - pending], dim=1)
                    columns.rescale(j, now, hessian, ranges, self.scales)
                column = block[j - start]
                aim = correction.aim if j == 0 else None
                code, value = columns.round(places[j], column if aim is None else aim)
                codes[places[j]] = code
                put_off[0][0][j - start] = (column - value) / factor[j, j]
                for moved, _ in put_off[1:]:
                    moved[j - start] = column
                for moved, by in put_off:
                    block[j - start :] -= moved[j - start] * by[j, j:end, None]
            rest[:, end:] -= _sum(put_off, start, end, end)
        return codes.T


def _sum(put_off: list[tuple[Tensor, Tensor]], start: int, to: int, end: int) -> Tensor:
    """Return what columns start to to take from those from end on, [out, in - end]."""
    moves = [moved[: to - start].T.contiguous() @ by[start:to, end:] for moved, by in put_off]
    return moves[0] if len(moves) == 1 else moves[0] + moves[1]
