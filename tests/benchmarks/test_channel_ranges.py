"""The spread of channels' ranges, on weights whose ranges are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.channel_ranges import spread, table


def test_spread_is_the_largest_range_over_the_median():
    layer = nn.Conv2d(2, 5, 1)
    with torch.no_grad():
        layer.weight.copy_(
            torch.tensor([[1, -2], [0, 3], [-12, 4], [1, 1], [2, -3]])[..., None, None]
        )
    assert spread(layer) == 4  # ranges 2, 3, 12, 1, 3


def test_a_scale_of_a_channel_does_not_hide_behind_another_layer():
    even, uneven = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1)
    with torch.no_grad():
        even.weight.fill_(-0.5)
        uneven.weight.fill_(0.5).mul_(torch.tensor([1.0, 1, 1, 8])[:, None, None, None])
    assert table(nn.Sequential(even, uneven)).splitlines()[2:] == [
        "| depthwise | 1 | 1.0 | 1.0 |", "| others | 1 | 8.0 | 8.0 |",
    ]  # fmt: skip


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_the_unit_of_weights_has_no_part(factor: float):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 3)
    before = spread(layer)
    with torch.no_grad():
        layer.weight.mul_(factor)
    assert spread(layer) == pytest.approx(before)
