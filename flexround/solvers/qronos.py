"""Qronos: correct what the layers before have done, then diffuse what rounding does.

arXiv 2505.11695. The first column is rounded to the best level with all others held; the others are
moved to the least squares answer to it and to the drift, and from there on it is GPTQ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flexround.cost import Cost
from flexround.solvers.gptq import Correction, inverse_factor
from flexround.solvers.gptq_on_drift import GPTQOnDrift

POWERS = 30  # steps of the power iteration, as in its authors' code


@dataclass(frozen=True)
class Qronos(GPTQOnDrift):
    """W_hat minimises |W X_fp - W_hat X|^2 greedily, every step an exact least squares answer.

    With D = (X_fp - X) X^T the first column is rounded from w_1 + w D_1 / H_11. The rest moves by
    w D_rest (H_rest)^-1 for the drift, and as under GPTQ for the rounding. w is the whole row here:
    an input that is always zero in X, though not in X_fp, has its part in w D; its own code is that
    of 0.

    Attributes:
        damp: share of H's largest eigenvalue that is added to H, where GPTQ's is of the mean
            diagonal.
    """

    def cost(self, out: int, into: int, steps: int = 0) -> Cost:
        """Return the cost of a weight [out, in]: GPTQ's, and the products that move the rest."""
        own = Cost(state_bytes=2 * 8 * into**2, flops=6.0 * out * into**2)
        return super().cost(out, into) + own

    def _factor(self, hessian: Tensor) -> Tensor:
        return inverse_factor(hessian, self.damp, _largest(hessian))

    def _correct(
        self, weight: Tensor, lost: Tensor | None, hessian: Tensor, across: Tensor, factor: Tensor
    ) -> Correction:
        pulled = (weight if lost is None else weight + lost) @ across  # [out, in]
        rest = factor[1:, 1:]  # of the Hessian without the first column
        shift = torch.zeros_like(weight)
        shift[:, 1:] = pulled[:, 1:] @ rest.T @ rest
        return Correction(shift=shift, aim=weight[:, 0] + pulled[:, 0] / hessian[0, 0])


def _largest(hessian: Tensor) -> Tensor:
    """Return the largest eigenvalue of hessian [in, in], from below, by power iteration."""
    vector = torch.ones(len(hessian), dtype=hessian.dtype, device=hessian.device)
    for _ in range(POWERS):
        vector = hessian @ (vector / vector.norm())
    largest: Tensor = vector.norm()
    return largest
