"""Common part of the solvers that are GPTQ with another target, W X_fp in place of W X."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flexround.grid import Grid, QuantizedTensor
from flexround.ranges import Ranges
from flexround.solvers.gptq import GPTQ
from flexround.solvers.hessian import Drift


@dataclass(frozen=True)
class GPTQOnDrift(GPTQ):
    """GPTQ whose subclass says what the drift of a layer's inputs adds."""

    def quantize_on_drift(
        self, weight: Tensor, hessian: Tensor, drift: Drift, grid: Grid, ranges: Ranges
    ) -> QuantizedTensor:
        """Return the integers of weight [out, in] for hessian [groups, in, in] and the drift.

        Raises:
            ValueError: when a Hessian can't be inverted.
        """
        return self._quantize(weight, hessian, drift, grid, ranges)
