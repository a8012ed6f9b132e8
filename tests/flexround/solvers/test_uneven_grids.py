"""Solvers on tables of levels."""

from __future__ import annotations

import pytest
import torch

from flexround.grid import Grid, PerChannel, PerGroup
from flexround.levels import BY_NAME
from flexround.ranges import MinMax
from flexround.solvers.cdquant import CDQuant
from flexround.solvers.gptq import GPTQ
from tests.flexround.quantizers.methods import activations

PLAIN = GPTQ(32, 0.01, False, False, False, "ranges")
SOLVERS = {
    "gptq": PLAIN,
    "gptq_owc": GPTQ(32, 0.01, False, True, False, "owc"),
    **{mode: CDQuant("rtn", mode, 8, 0, PLAIN) for mode in ("cyclic", "greedy", "pairs")},
    "cdquant_owc": CDQuant("owc", "cyclic", 8, 0, PLAIN),
}
GRIDS = {
    name: Grid(4, True, PerGroup(32) if kind.block else PerChannel(), kind())
    for name, kind in BY_NAME.items()
}


def error(change, hessian):
    return ((change @ hessian) * change).sum().item()


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_solver_errs_less_than_rounding_and_stays_on_the_grid(solver, grid):
    inputs = activations(512, 64).double()
    hessian = (inputs.T @ inputs / len(inputs))[None]
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1)) * 0.1
    rows = grid.granularity.group(weight)
    nearest = grid.nearest(rows, *MinMax()(rows, grid)).view_as(weight)
    found = solver.quantize(weight, hessian, grid, MinMax())
    values = found.dequantize()
    exact = weight.double()
    assert error(values - exact, hessian[0]) < 0.9 * error(nearest - exact, hessian[0])
    assert found.codes.min() >= grid.qmin
    assert found.codes.max() <= grid.qmax
    if grid.levels.powers:
        assert (torch.frexp(found.scale).mantissa == 0.5).all()
    if getattr(solver, "mode", None) != "cyclic":
        return
    # No other code of one weight would lower its row's error.
    scales = found.scale.expand_as(rows).reshape(weight.shape).double()
    for row, column in [(0, 0), (3, 17), (15, 63)]:
        best = error((values - exact)[row : row + 1], hessian[0])
        for level in grid.levels.values:
            other = (values - exact)[row : row + 1].double().clone()
            other[0, column] = level * scales[row, column] - exact[row, column]
            assert error(other, hessian[0]) >= best * (1 - 1e-6)
