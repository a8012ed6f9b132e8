"""A module's forward that is replaced for a while comes back as it was."""

from __future__ import annotations

from types import MethodType

import pytest
import torch
from torch import nn

import flexround
from flexround.calibration.calls import other_forward, stub_forward


class Residual(nn.Module):
    """A residual block."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU()

    def forward(self, x):
        """Return what it gives."""
        return x + self.second(self.act(self.first(x)))


def of_ones_own(self, x):
    return 0.5 * x + 2 * self.second(self.act(self.first(x)))


def test_a_forward_of_the_class_and_one_of_ones_own_both_come_back():
    plain, patched = Residual(), Residual()
    patched.forward = own = MethodType(of_ones_own, patched)
    for module in (plain, patched):
        with pytest.raises(RuntimeError), other_forward(module, lambda x: x):
            raise RuntimeError
        with stub_forward(module, "stub"):
            assert module(torch.ones(1, 8)) == "stub"
    assert "forward" not in vars(plain)
    assert patched.forward is own


def test_a_block_with_a_forward_of_its_own_keeps_it_through_quantization():
    """Eight bits are near the network that was given; another function is not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Residual(), Residual(), nn.Linear(8, 3))
    for block in network[2:4]:
        block.forward = MethodType(of_ones_own, block)
    x = torch.randn(64, 8)
    found = flexround.quantize(network.eval(), x, method="rtn", bits=8, granularity="per_channel")
    assert "forward" in vars(found.network[2])
    with torch.no_grad():
        wanted = network(x)
        assert (found.network(x) - wanted).norm() <= 0.02 * wanted.norm()
