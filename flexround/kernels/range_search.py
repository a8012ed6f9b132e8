"""Search of a range among candidates: the same scale as by trying them all, with fewer tries.

The error of a row at one scale bounds its error at another. Let d be the distances of the values w
from their grid at scale t, q t the points that they are rounded to, and |.| the p-norm over a row.
At scale b with the same zero point a value may still be given its code at t, so its distance there
is at most d + |b - t| |q|, and t |q| is at most |w| + d. By Minkowski's inequality, for p >= 1,

    root(t) >= (root(b) - k |w|) / (1 + k),   k = |b - t| / t

for root = (sum d^p)^(1/p), or for what is known to be at most root(b). Candidates are tried in ever
finer steps; those that cannot be the best of their row are left out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flexround.grid import Codes
from flexround.levels import nearest_places

CHUNK = 1 << 16  # elements worked on at a time: with two copies they stay in a core's own cache
PART = 1 << 20  # elements searched at once: what is held of every candidate grows with them
STRIDES = (16, 8, 4, 2, 1)  # between candidates that are tried, pass after pass
# What a root is wrong by at most in float32: a share of itself, and one of the values' norm.
OF_ROOT, OF_NORM = 1e-5, 4e-6
LEAST = 1e-25  # a smaller mean of d^p may have lost digits
LANES = 64  # a multiple of what exp2 takes at once, where two threads share CHUNK, too
Error = Callable[[Tensor, Tensor], Tensor]


def power(distance: Tensor, p: float) -> Tensor:
    """Return |distance|^p, worked out in the memory of distance: alike wherever a value stands."""
    # Three times as fast as pow; 0 goes through -inf back to 0.
    exponents = distance.abs_().log2_().mul_(p)
    if exponents.device.type != "cpu" or not exponents.is_contiguous():
        return exponents.exp2_()
    # On a CPU exp2 takes whole vectors of a thread's share one way and the values behind them
    # another, which may differ in the last digit: those get a whole vector, too.
    flat = exponents.view(-1)
    whole = len(flat) // LANES * LANES
    for part in flat[:whole].split(CHUNK):
        part.exp2_()
    if rest := len(flat) - whole:
        vector = flat.new_zeros(LANES)
        vector[:rest] = flat[whole:]
        flat[whole:] = vector.exp2_()[:rest]
    return exponents


def can_search(values: Tensor, p: float) -> bool:
    """Return whether the bound holds for values, and fewer tries are a gain where they are."""
    # On a GPU to pick rows out is to wait for it.
    precise = values.dtype in (torch.float32, torch.float64)
    return p >= 1 and precise and values.device.type == "cpu" and values.numel() > 0


class Roots:
    """(sum |w - fake_quantize(w)|^p)^(1/p) of rows of values, to float32's tolerance.

    Attributes:
        norms: (sum |w|^p)^(1/p), [rows].
        lost: a smaller root may have lost its digits.
    """

    def __init__(self, values: Tensor, zero_point: Tensor, codes: Codes, p: float) -> None:
        """Take values [rows, elements] and zero_point [rows, 1]."""
        self._values, self._p, self._codes = values, p, codes
        self._zero_point, self._symmetric = zero_point, not bool(zero_point.any())
        self._step = max(1, CHUNK // values.shape[1])
        width = min(CHUNK, values.shape[1])
        self._memory = [values.new_empty(self._step, width) for _ in range(3)]
        self.lost = (LEAST * values.shape[1]) ** (1 / p)
        parts = values.split(self._step)
        self.norms = torch.cat([power(part.clone(), p).sum(1) for part in parts]).pow_(1 / p)

    def __call__(self, rows: Tensor, scale: Tensor) -> Tensor:
        """Return the roots of the rows at the places [tries] at scale [tries]."""
        # A pass less than to add the zero point and to take it off again.
        low = self._codes.low - self._zero_point.index_select(0, rows)
        high, found = low + (self._codes.high - self._codes.low), []
        for start in range(0, len(rows), self._step):
            own = slice(start, start + self._step)
            found.append(self._errors(rows[own], scale[own, None], low[own], high[own]))
        return torch.cat(found).pow_(1 / self._p).mul_(scale)

    def _errors(self, rows: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return sum |error|^p in units of scale [tries, 1], [tries]."""
        if self._step == 1:  # a long row, in parts
            values = self._values[int(rows)][None]
        else:
            values = torch.index_select(self._values, 0, rows, out=self._memory[2][: len(rows)])
        total = values.new_zeros(len(values))
        for part in values.split(CHUNK, dim=1):
            steps, levels = (held[: len(part), : part.shape[1]] for held in self._memory[:2])
            torch.mul(part, scale.reciprocal(), out=steps)
            table = self._codes.table
            if table is not None:
                places = nearest_places(steps, table).clamp_(0, len(table.levels) - 1)
                levels.copy_(table.levels[places])
            elif self._symmetric:
                torch.round(steps, out=levels).clamp_(self._codes.low, self._codes.high)
            else:
                torch.round(steps, out=levels)
                torch.maximum(levels, low, out=levels)
                torch.minimum(levels, high, out=levels)
            total += power(levels.sub_(steps), self._p).sum(dim=1)
        return total


def best_scale(roots: Roots, scales: Tensor, error: Error) -> Tensor:
    """Return the scale of scales [candidates, rows] with the smallest error, [rows].

    error returns sum d^p of the rows at the places [tries] at scales [tries, 1]. It is asked for
    where candidates are too close to tell apart: the first of equals is taken.
    """
    still_open = _open_candidates(roots, scales)
    best = scales.gather(0, still_open.int().argmax(dim=0)[None])[0]
    several = (still_open.sum(dim=0) > 1).nonzero()[:, 0]
    if len(several):
        candidate, place = still_open.index_select(1, several).nonzero(as_tuple=True)
        rows = several.index_select(0, place)
        found = scales.new_full((len(scales), len(several)), torch.inf)
        tries = error(rows, scales[candidate, rows, None])[:, 0]
        found[candidate, place] = tries.nan_to_num_(nan=torch.inf, posinf=torch.inf)
        best[several] = scales[found.argmin(dim=0), several]
    return best


def _open_candidates(roots: Roots, scales: Tensor) -> Tensor:
    """Return which scales [candidates, rows] may have the smallest error, of their shape."""
    known = torch.full_like(scales, -torch.inf)  # what the roots are at least
    best = torch.full_like(scales[0], torch.inf)
    for stride in STRIDES:
        first = stride == STRIDES[0]
        new = slice(0, None, stride) if first else slice(stride, None, 2 * stride)
        own, least = scales[new], known[new].clone()
        if not first:
            for near in (slice(0, None, 2 * stride), slice(2 * stride, None, 2 * stride)):
                count = min(len(own), len(scales[near]))
                sides = scales[near][:count], known[near][:count]
                bound = _bound(own[:count], *sides, roots.norms)
                least[:count] = torch.maximum(least[:count], bound)
        tries = _may_win(least, best, roots).flatten().nonzero()[:, 0]
        known[new] = least
        if len(tries):
            found = roots(tries % len(best), own.flatten().index_select(0, tries))
            known[new] = least.flatten().index_copy_(0, tries, found).view_as(least)
            found = torch.full_like(least, torch.inf).flatten().index_copy_(0, tries, found)
            best = torch.fmin(best, found.view_as(least).amin(dim=0))
    return _may_win(known, best, roots)


def _bound(scales: Tensor, others: Tensor, known: Tensor, norms: Tensor) -> Tensor:
    """Return what the roots at scales are at least, by what is known of those at others."""
    change = (others - scales).abs_().div_(scales)
    return torch.addcmul(known, change, norms, value=-1).div_(change.add_(1))


def _may_win(known: Tensor, best: Tensor, roots: Roots) -> Tensor:
    """Return where a root of which so much is known may be the smallest of its row."""
    most = best * ((1 + OF_ROOT) / (1 - OF_ROOT)) + roots.norms * (OF_NORM / (1 - OF_ROOT))
    return (known > most.masked_fill_(best <= roots.lost, torch.inf)).logical_not_()
