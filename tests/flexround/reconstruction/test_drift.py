"""Drift that solvers are told of, against two whole networks run side by side."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from flexround.grid import Grid, PerChannel
from flexround.ranges import MinMax
from flexround.reconstruction.layerwise import Solve
from flexround.solvers.gptq import GPTQ
from tests.flexround.reconstruction.test_reconstruction import adapter, calibration
from tests.flexround.solvers.test_drift import GPTAQ_, QRONOS

GRID = Grid(3, True, PerChannel())


@dataclass(frozen=True)
class Noting(GPTQ):
    """GPTQ that keeps what it is told of each weight."""

    told: list = field(default_factory=list)

    def quantize_on_drift(self, weight, hessian, drift, grid, ranges):
        """Keep the drift, and be GPTQ."""
        self.told.append((weight.clone(), hessian, drift))
        return self.quantize(weight, hessian, grid, ranges)


def solve(solver, target, sequential=True):
    return Solve(8, sequential)(
        target, calibration(32), quantizer=solver, grid=GRID, ranges=MinMax(),
        generator=torch.Generator(),
    )  # fmt: skip


def inputs_of(model, name, images):
    found = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, a: found.append(a[0]))
    with torch.no_grad():
        model(images)
    handle.remove()
    return found[0]


def rows(module, inputs):
    if isinstance(module, nn.Linear):
        return inputs
    patches = nn.functional.unfold(inputs, module.kernel_size, padding=module.padding)
    return patches.movedim(1, 2).flatten(0, 1)


def test_drift_is_that_between_the_network_as_it_came_and_as_it_is_quantized_so_far():
    target = adapter()
    before = copy.deepcopy(target.model)
    names = [layer.name for block in target.blocks() for layer in block.layers]
    noting = Noting(128, 0.01, False, False, False, "ranges")
    solve(noting, target)
    (images,) = calibration(32)
    assert len(noting.told) == len(names) > 4
    for name, (weight, hessian, drift) in zip(names, noting.told, strict=True):
        module = before.get_submodule(name)
        assert torch.equal(weight, module.weight.flatten(1))
        # Layers behind are not quantized yet, but their inputs do not depend on that.
        exact = rows(module, inputs_of(before, name, images)).double()
        taken = rows(module, inputs_of(target.model, name, images)).double()
        scale = 2 / len(taken)
        for own, expected in (
            (hessian, taken.T @ taken),
            (drift.across, (exact - taken).T @ taken),
            (drift.along, (exact - taken).T @ (exact - taken)),
        ):
            expected = scale * expected
            assert (own[0] - expected).norm() <= 1e-3 * expected.norm()
    assert noting.told[0][2].along.abs().max() == 0  # nothing lies before the first layer
    assert all(told[2].along.norm() > 0 for told in noting.told[1:])


@pytest.mark.parametrize("solver", [GPTAQ_, QRONOS], ids=["gptaq", "qronos"])
@pytest.mark.parametrize("sequential", [True, False])
def test_the_networks_output_is_nearer_than_gptqs(solver, sequential):
    (images,), errors = calibration(32), {}
    for method in (solver, GPTQ(128, 0.01, False, False, False, "ranges")):
        target = adapter()
        with torch.no_grad():
            exact = target.model(images)
            codes = solve(method, target, sequential)
            errors[type(method)] = (target.model(images) - exact).square().sum().item()
        for name, integers in codes.items():
            assert torch.equal(target.model.get_submodule(name).weight, integers.dequantize())
    assert errors[type(solver)] < errors[GPTQ]
