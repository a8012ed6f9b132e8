"""Our Adam against torch's, to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flexround.quantizers.adam import Adam, joined

SHAPES = ((5, 1), (5, 3, 2, 2), (5, 1, 1, 1), (7,))


def _parameters() -> list[nn.Parameter]:
    made = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=made)) for shape in SHAPES]


def _steps(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], missing: set[int]) -> None:
    """Take six steps under a schedule; in those of missing the last parameter has no gradient."""
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    draws = torch.Generator().manual_seed(1)
    for step in range(6):
        optimizer.zero_grad()
        assert all(param.grad is None for param in params)
        for param in params:
            param.grad = torch.randn(param.shape, generator=draws)
        if step in missing:
            params[-1].grad = None
        optimizer.step()
        rates.step()


@pytest.mark.parametrize("missing", [set(), {0}, {3}, {0, 1, 5}])
def test_parameters_are_those_of_torch(missing: set[int]) -> None:
    """The same values, and the same state, whichever parameters a step leaves out."""
    ours, theirs = _parameters(), _parameters()
    _steps(own := Adam([{"params": [p], "lr": 1e-2} for p in ours]), ours, missing)
    _steps(torch.optim.Adam(theirs, lr=1e-2, fused=True), theirs, missing)
    for param, expected in zip(ours, theirs, strict=True):
        assert torch.equal(param, expected)
        assert not torch.equal(param, torch.zeros_like(param))
    assert own.state[ours[-1]]["step"] == 6 - len(missing)
    assert own.state[ours[0]]["step"] == 6


def test_rates_of_groups_are_kept_apart() -> None:
    """Groups of one rate become one; each rate moves its own parameters by itself."""
    params = _parameters()
    groups = [{"params": [p], "lr": lr} for p, lr in zip(params, (1.0, 2.0, 1.0, 2.0), strict=True)]
    assert [len(group["params"]) for group in joined(groups)] == [2, 2]
    before = [param.detach().clone() for param in params]
    optimizer = Adam(groups)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    # Adam's first step is the rate times the gradient's sign.
    for param, start, lr in zip(params, before, (1.0, 2.0, 1.0, 2.0), strict=True):
        torch.testing.assert_close(start - param, torch.full_like(param, lr))


@pytest.mark.parametrize("option", [{"weight_decay": 0.1}, {"amsgrad": True}, {"maximize": True}])
def test_options_of_a_group_count_at_every_step(option: dict[str, float]) -> None:
    """What a method gives its parameters besides a rate is torch's, after the first step too."""
    ours, theirs = _parameters(), _parameters()
    _steps(Adam([{"params": ours, "lr": 1e-2, **option}]), ours, set())
    _steps(torch.optim.Adam(theirs, lr=1e-2, fused=True, **option), theirs, set())
    for param, expected in zip(ours, theirs, strict=True):
        assert torch.equal(param, expected)
