"""Passes that end where the last input that is asked for is seen."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from flexround.calibration.calls import ended_at
from flexround.reconstruction import layerwise
from tests.flexround.reconstruction.test_drift import solve
from tests.flexround.reconstruction.test_reconstruction import adapter
from tests.flexround.solvers.test_drift import GPTAQ_
from tests.flexround.solvers.test_solvers import PLAIN


class Twice(nn.Module):
    """Calls its first layer twice, then its second."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        """Return b(a(a(x)))."""
        return self.b(self.a(self.a(x)))


def calls_of(run, *modules):
    """Return how often each module is called, and how often it computes, in run."""
    begun, done = Counter(), Counter()
    handles = [m.register_forward_pre_hook(lambda m, _: begun.update([m])) for m in modules]
    handles += [m.register_forward_hook(lambda m, *_: done.update([m])) for m in modules]
    run()
    for handle in handles:
        handle.remove()
    return [(begun[m], done[m]) for m in modules]


@pytest.mark.parametrize(
    ("ends", "a", "b"),
    [({"a": 1}, (1, 0), (0, 0)), ({"a": 2}, (2, 1), (0, 0)), ({"a": 2, "b": 1}, (2, 2), (1, 0)),
     ({"a": 3}, (2, 2), (1, 1)), ({}, (2, 2), (1, 1))],
    ids=["first call", "second call", "another layer", "a call that never comes", "no end"],
)  # fmt: skip
def test_a_pass_ends_at_the_last_input_that_is_asked_for(ends, a, b):
    net = Twice()

    def run():
        with ended_at({getattr(net, name): count for name, count in ends.items()}):
            net(torch.ones(2, 3))

    assert calls_of(run, net.a, net.b) == [a, b]
    assert not net.a._forward_pre_hooks
    assert calls_of(lambda: net(torch.ones(2, 3)), net.a, net.b) == [(2, 2), (1, 1)]


@pytest.mark.parametrize("solver", [PLAIN, GPTAQ_], ids=["gptq", "gptaq"])
def test_passes_that_end_early_give_the_codes_of_whole_ones(solver, monkeypatch):
    codes, last = [], []
    for whole in (False, True):
        if whole:
            monkeypatch.setattr(layerwise, "ended_at", lambda _: nullcontext())
        target = adapter()
        module = [layer.module for block in target.blocks() for layer in block.layers][-2]
        found = []
        last.append(calls_of(lambda t=target, f=found: f.append(solve(solver, t)), module))
        codes.append(found[0])
    for name, integers in codes[0].items():
        assert torch.equal(integers.codes, codes[1][name].codes)
    assert last[0][0] < last[1][0], "the last layer of a block is called less often"
