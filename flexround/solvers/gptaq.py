"""GPTAQ: GPTQ whose target is the full-precision network's output (arXiv 2504.02692)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flexround.cost import Cost
from flexround.solvers.gptq import Correction
from flexround.solvers.gptq_on_drift import GPTQOnDrift


@dataclass(frozen=True)
class GPTAQ(GPTQOnDrift):
    """W_hat minimises |W X_fp - W_hat X|^2 greedily; X has what quantized layers before it give.

    Beside GPTQ's own update, rounding column j moves the columns behind by w_j P_j, the least
    squares answer to the drift of input j: with D = (X_fp - X) X^T and H^-1 = U^T U,
    P = triu(D U^T, 1) U.

    An input that is always zero in X, though not in X_fp, has its drift as well. It is taken as the
    first column, so that all others move by w_j P_j = w_j D_j H^-1; its own code, which no output
    sees, is that of 0. The authors' code sets w_j to 0 before and so loses this term of the
    equation.

    Attributes:
        alpha: share of P that is used. The paper's derivation has 1, its authors' code 0.25.
    """

    alpha: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise ValueError(f"quant.alpha={self.alpha}: give a share above 0, at most 1")

    def cost(self, out: int, into: int, steps: int = 0) -> Cost:
        """Return the cost of a weight [out, in]: GPTQ's, two products for P, as many updates."""
        own = Cost(state_bytes=3 * 8 * into**2, flops=4.0 * into**3 + out * into**2)
        return super().cost(out, into) + own

    def _correct(
        self, weight: Tensor, lost: Tensor | None, hessian: Tensor, across: Tensor, factor: Tensor
    ) -> Correction:
        shift = None if lost is None else self.alpha * lost @ across @ factor.T @ factor
        return Correction(pull=self.alpha * (across @ factor.T).triu(1) @ factor, shift=shift)
