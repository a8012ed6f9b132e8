"""The contract of a solver: one weight rounded against its Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from flexround.cost import Cost
from flexround.grid import Grid, QuantizedTensor
from flexround.ranges import Ranges


class Solver(Protocol):
    """Rounds one weight against its Hessian."""

    def check_grid(self, grid: Grid) -> None:
        """Check that the options go with the grid."""
        ...

    def cost(self, out: int, into: int, steps: int) -> Cost:
        """Return what solving a weight [out, in] in steps has cost."""
        ...

    def quantize(
        self,
        weight: Tensor,
        hessian: Tensor,
        grid: Grid,
        ranges: Ranges,
        watch: Callable[[float], None] | None = None,
    ) -> QuantizedTensor:
        """Return the integers of weight [out, in] for hessian [groups, in, in].

        watch is told the objective where the search starts and after each of its steps.
        """
        ...
