"""The plain versions that benchmarks divide our times by, and that tests compare ours with.

The solvers' algorithms as their papers write them, one column or one weight at a time, and a
parametrization by a quantizer's `reference`, its equation in torch's own operations and autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flexround.quantizers.base import WeightQuantizer


class Plain(nn.Module):
    """A parametrization of a weight by a quantizer's equation, with the quantizer's parameters."""

    def __init__(self, quantizer: WeightQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized weight, same shape."""
        return self.quantizer.reference(weight)


def gptq(
    weight: Tensor, hessian: Tensor, scale: Tensor, zero: Tensor, qmax: int, block: int, damp: float
) -> Tensor:
    """Return GPTQ's quantized weight [out, in], arXiv 2210.17323, algorithm 1; one scale a row."""
    rest, into = weight.clone(), weight.shape[1]
    damped = hessian + damp * hessian.diagonal().mean() * torch.eye(into, dtype=hessian.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True).to(weight.dtype)
    found = torch.zeros_like(weight)
    for start in range(0, into, block):
        end = min(start + block, into)
        part, errors = rest[:, start:end].clone(), torch.zeros_like(rest[:, start:end])
        own = factor[start:end, start:end]
        for j in range(end - start):
            column = part[:, j : j + 1]
            codes = torch.clamp(torch.round(column / scale) + zero, 0, qmax)
            value = (codes - zero) * scale
            error = (column - value) / own[j, j]
            part[:, j:] -= error @ own[j : j + 1, j:]
            errors[:, j : j + 1] = error
            found[:, start + j : start + j + 1] = value
        rest[:, end:] -= errors @ factor[start:end, end:]
    return found


def cyclic_descent(
    weight: Tensor, values: Tensor, hessian: Tensor, scale: Tensor, zero: Tensor, qmax: int
) -> Tensor:
    """Return values [out, in] after one sweep, each weight by itself; one scale a row."""
    values = values.clone()
    diagonal = hessian.diagonal()
    for i in range(len(weight)):
        for j in range(weight.shape[1]):
            gradient = (values[i] - weight[i]) @ hessian[:, j]
            target = values[i, j] - gradient / diagonal[j]
            code = torch.clamp(torch.round(target / scale[i, 0]) + zero[i, 0], 0, qmax)
            values[i, j] = (code - zero[i, 0]) * scale[i, 0]
    return values
