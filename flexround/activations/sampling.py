"""Sample of an activation's elements, for a search that can't look at all of them.

A range is the business of the tails: what clipping loses of a few large values is weighed against
what rounding loses of all others. So elements come from everywhere (a stride that divides the
hidden size sees the same few channels), and none counts for more than it is: the smallest and the
largest of 10^8 elements, put into a sample of 10^6, would be as heavy as 100 and widen the range.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return count elements of x of any shape, one at random of each of count equal stretches.

    All of them, flat and in order, where x has no more. generator lies on the CPU.
    """
    values = x.reshape(-1)
    if len(values) <= count:
        return values
    places = torch.rand(count, dtype=torch.float64, generator=generator)
    places = places.add_(torch.arange(count)).mul_(len(values) / count).long()
    return values[places.clamp_(max=len(values) - 1).to(values.device)]


def condense(values: Tensor, count: int) -> Tensor:
    """Return count values that stand for all of values: means of neighbours in sorted order.

    values itself where it holds no more. Each stands for equally many, up to one.
    """
    if len(values) <= count:
        return values
    sums = values.sort().values.double().cumsum(0)
    ends = torch.arange(1, count + 1, device=values.device) * len(values) // count
    first = torch.zeros(1, dtype=ends.dtype, device=values.device)
    totals, sizes = sums[ends - 1], ends.diff(prepend=first)
    return (totals.diff(prepend=first.double()) / sizes).float()
