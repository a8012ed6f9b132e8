"""The methods' formulas as their papers write them, in torch's own operations and its autograd.

They are what the tests compare the library's own passes with, and what the benchmark divides our
times by. Each takes a quantizer, whose parameters it uses, and the weight [out, in, *kernel].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flexround.kernels.soft_round import GAMMA, ZETA
from flexround.quantizers.adaquant import AdaQuant
from flexround.quantizers.adaquant_flexround import AdaQuantFlexRound
from flexround.quantizers.adaround import AdaRound
from flexround.quantizers.base import WeightQuantizer
from flexround.quantizers.flexround import FlexRound
from flexround.quantizers.lrq import LRQ
from flexround.quantizers.signround import SignRound

# Clamped this far outside of the outermost codes, a value still rounds to them, and the codes
# themselves lie inside, where torch.clamp passes the gradient.
HALF = 0.4999999


def on_grid(q: WeightQuantizer, steps: Tensor, zero_point: Tensor, scale: Tensor) -> Tensor:
    """Return scale * (clamp(round(steps) + z) - z), steps [groups, elements], straight through."""
    codes = torch.clamp(steps + zero_point, q.grid.qmin - HALF, q.grid.qmax + HALF)
    codes = codes + (codes.round() - codes).detach()
    return (codes - zero_point) * scale


def flexround(q: FlexRound, weight: Tensor) -> Tensor:
    """Return s1 round(W / (s1 S2 s3 s4))."""
    logs = [log for log in (q.log_s2, q.log_s3, q.log_s4) if log is not None]
    values = q.grid.granularity.group(weight / torch.exp(sum(logs[1:], logs[0])))
    s1 = q.scale * torch.exp(q.log_s1)
    return on_grid(q, values / s1, q.zero_point, s1).reshape(weight.shape)


def adaquant_flexround(q: AdaQuantFlexRound, weight: Tensor) -> Tensor:
    """Return s1 round((W + V) / (s1 S2 s3 s4))."""
    return flexround(q, weight + q.v)


def lrq(q: LRQ, weight: Tensor) -> Tensor:
    """Return s1 round(W / (s1 exp(L2 U2 + r2 + c2)))."""
    assert q.u2 is not None, "a rank is given"
    values = q.grid.granularity.group(weight / torch.exp(q.l2 @ q.u2 + q.r2 + q.c2))
    s1 = q.scale * torch.exp(q.log_s1)
    return on_grid(q, values / s1, q.zero_point, s1).reshape(weight.shape)


def adaquant(q: AdaQuant, weight: Tensor) -> Tensor:
    """Return s1 round((W + V) / s1)."""
    values = q.grid.granularity.group(weight + q.v)
    return on_grid(q, values / q.s1, q.zero_point, q.s1).reshape(weight.shape)


def signround(q: SignRound, weight: Tensor) -> Tensor:
    """Return s round(W / s + V), s and z from the range's ends alpha low and beta high."""
    scale, zero_point = q.scale * q.beta, q.zero_point
    if q.alpha is not None:
        levels = q.grid.qmax - q.grid.qmin
        low, high = -q.scale * q.zero_point, q.scale * (levels - q.zero_point)
        scale = (q.beta * high - q.alpha * low) / levels
        ends = -q.alpha * low / scale
        zero_point = ends + (ends.round() - ends).detach()
    values = q.grid.granularity.group(weight)
    return on_grid(q, values / scale + q.v, zero_point, scale).reshape(weight.shape)


def adaround(q: AdaRound, weight: Tensor) -> Tensor:
    """Return s (floor(W / s) + h(V))."""
    values = q.grid.granularity.group(weight)
    h = torch.clamp(torch.sigmoid(q.v) * (ZETA - GAMMA) + GAMMA, 0, 1)
    codes = torch.floor(values / q.scale) + h + q.zero_point
    codes = torch.clamp(codes, q.grid.qmin, q.grid.qmax)
    return ((codes - q.zero_point) * q.scale).reshape(weight.shape)


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "flexround": flexround,
    "adaround": adaround,
    "lrq": lrq,
    "signround": signround,
    "adaquant": adaquant,
    "adaquant_flexround": adaquant_flexround,
}


class Plain(nn.Module):
    """A parametrization by a formula, with the parameters of a quantizer."""

    def __init__(self, quantizer: WeightQuantizer, formula: Callable[..., Tensor]) -> None:
        super().__init__()
        self.quantizer, self.formula = quantizer, formula

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized weight, same shape."""
        return self.formula(self.quantizer, weight)
