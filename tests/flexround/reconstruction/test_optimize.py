"""Optimizers of a unit: one step over all of its tensors."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flexround.quantizers import adam
from flexround.quantizers.adam import joined
from flexround.quantizers.flexround import FlexRound
from flexround.reconstruction.optimize import UnitOptimizer
from tests.flexround.reconstruction.test_reconstruction import (
    GRID,
    METHODS,
    RANGES,
    SETTING,
    adapter,
    calibration,
    quantize,
)

UNITS = 4  # of the network: a stem, two residual blocks and a head
SHORT = replace(SETTING, iters=3)


class Operations(TorchDispatchMode):
    """Counts operations by their names."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket] += 1
        return func(*args, **(kwargs or {}))


def test_groups_that_differ_in_their_tensors_alone_are_one():
    a, b, c, d = (torch.nn.Parameter(torch.zeros(size)) for size in (1, 2, 3, 4))
    groups = [
        {"params": [a], "lr": 1e-3}, {"params": [b], "lr": 2e-3}, {"params": [c], "lr": 1e-3},
        {"params": [d], "lr": 1e-3, "betas": (0.5, 0.9)},
    ]  # fmt: skip
    found = [([p.numel() for p in g["params"]], {k: g[k] for k in g if k != "params"})
             for g in joined(groups)]  # fmt: skip
    assert found == [
        ([1, 3], {"lr": 1e-3}), ([2], {"lr": 2e-3}), ([4], {"lr": 1e-3, "betas": (0.5, 0.9)}),
    ]  # fmt: skip
    assert [len(group["params"]) for group in groups] == [1, 1, 1, 1], "they are left as they were"


@pytest.mark.parametrize(
    ("method", "groups"), [("flexround", 1), ("adaround", 1), ("adaquant_flexround", 2)]
)
def test_a_step_is_one_launch_for_each_rate_however_many_layers(method, groups, monkeypatch):
    """And to the last bit the step that each layer would take by itself."""
    with Operations() as seen:
        _, together = quantize(SHORT, method)
    assert seen.counts[torch.ops.aten._fused_adam_] == UNITS * SHORT.iters * groups
    monkeypatch.setattr(adam, "joined", list)
    with Operations() as seen:
        _, apart = quantize(SHORT, method)
    assert seen.counts[torch.ops.aten._fused_adam_] > UNITS * SHORT.iters * groups
    for name, integers in together.items():
        assert torch.equal(integers.codes, apart[name].codes)
        assert torch.equal(integers.scale, apart[name].scale)


def test_a_loss_without_any_learned_parameter_is_told():
    """A method that has its parameter in `reference` alone, which no run asks for."""
    unused = torch.nn.Parameter(torch.zeros(1))
    descent = UnitOptimizer("block 3", "recon.lr", 5, 2, torch.Generator().manual_seed(0), ())
    own = [(torch.optim.Adam([unused]), None)]
    with pytest.raises(
        ValueError, match=r"block 3: no learned parameter .* not in reference alone"
    ):
        descent.run(4, lambda batch, at: (torch.ones(()), torch.ones(())), own, lambda: None)


def test_a_parameter_that_is_learned_by_no_gradient_is_told():
    """Beside one that has a gradient: a typo in a method would leave it where it starts."""

    class Forgotten(FlexRound):
        def __init__(self, weight, **options):
            super().__init__(weight, **options)
            self.log_s5 = torch.nn.Parameter(torch.zeros(1))

    made = partial(Forgotten, **METHODS["flexround"].keywords)
    with pytest.raises(
        ValueError, match=r"layer 0: log_s5 of Forgotten is learned, and has no part"
    ):
        SHORT(
            adapter(), calibration(), quantizer=made, grid=GRID, ranges=RANGES,
            generator=torch.Generator().manual_seed(0), callbacks=(),
        )  # fmt: skip
