"""The base of every weight quantizer: round-to-nearest, and the hooks that a method overrides.

A method is one file: its equation in plain torch operations (`reference`), its parameters, and the
hooks that differ from round-to-nearest:

    RTN                none
    AdaRound           round, regularizer
    AdaQuant           dequantization_scale, dequantization_zero_point, rescale, round, param_groups
    FlexRound          dequantization_scale, forward
    AdaQuantFlexRound  forward, param_groups, the rest as FlexRound
    LRQ                dequantization_scale, forward
    LWC                none but ClippedRange's
    FlexRoundLWC       param_groups, the rest as ClippedRange and FlexRound
    SignRound          dequantization_scale, dequantization_zero_point, round, optimizer, after_step

`reference` is what anyone can check against the paper; `forward` is what runs, by way of
flexround/kernels/. tests/flexround/quantizers/test_reference.py holds the two equal.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flexround.grid import Grid, QuantizedTensor
from flexround.kernels.fake_quantize import fake_quantize
from flexround.levels import straight_through
from flexround.quantizers.adam import Adam
from flexround.ranges import Ranges


def on_grid(
    steps: Tensor,
    zero_point: Tensor,
    scale: Tensor,
    grid: Grid,
    clamp_first: bool = False,
    shift: Tensor | float = 0.0,
) -> Tensor:
    """Return scale * (clamp(round(steps) + zero_point, qmin, qmax) - zero_point).

    steps [groups, elements] are weights in units of the scale; scale and zero_point are
    [groups, 1]. Rounding passes the gradient straight through; the clamp passes it inside its
    bounds, the bounds included. This mask is written out because torch.clamp's own gradient at a
    bound is 1, 0.5 or 0 depending on torch's version, and at 2 bits a third of all codes lie there.
    With clamp_first the clamp comes before the rounding: the same values, but no gradient from up
    to half a step beyond a bound. shift is added to steps.

    On a table of levels it is scale * level of the nearest, and shift is in units of the gap that a
    step lies in: it moves by that many of the places between which it lies.
    """
    if grid.levels is not None:
        return _on_levels(steps, scale, grid, clamp_first, shift)
    steps = steps + shift
    unclamped = (steps if clamp_first else torch.round(steps)) + zero_point
    codes = torch.clamp(unclamped, grid.qmin, grid.qmax)
    inside = codes == unclamped
    codes = straight_through(torch.round(codes), (steps + zero_point) * inside)
    return (codes - zero_point) * scale


def _on_levels(
    steps: Tensor, scale: Tensor, grid: Grid, clamp_first: bool, shift: Tensor | float
) -> Tensor:
    """Return on_grid's values for a table, by each step's place between its levels, 0, 1, ..."""
    levels = steps.new_tensor(grid.levels.values if grid.levels is not None else ())
    cell = (steps[..., None] >= levels[1:-1]).sum(-1)
    gap = levels.diff()[cell]
    place = (cell + (steps - levels[cell]) / gap + shift).detach()
    last = len(levels) - 1
    # Codes count from that of 0, and ties go to the even one.
    code = torch.round(place + grid.qmin).clamp(grid.qmin, grid.qmax)
    slack = 0.0 if clamp_first else 0.5
    inside = (place >= -slack) & (place <= last + slack)
    found = levels[(code - grid.qmin).long()]
    return straight_through(found, (steps + gap * shift) * inside) * scale


class RoundThrough(torch.autograd.Function):
    """Round, with the gradient passed straight through."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return the nearest whole numbers."""
        return torch.round(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return grad."""
        return grad


class WeightQuantizer(nn.Module):
    """W_hat = scale * (clamp(round(W / scale) + zero_point, qmin, qmax) - zero_point).

    Used as a parametrization of a layer's weight: `forward` maps the full-precision weight
    [out, in, *kernel] to the fake-quantized one of the same shape.
    """

    scale: Tensor  # [groups, 1], as the ranges chose it; SignRound's may be negative
    zero_point: Tensor  # [groups, 1], integral, where it starts

    def reference(self, weight: Tensor) -> Tensor:
        """Return the equation's W_hat in plain torch operations and autograd, same shape."""
        steps = self.grid.granularity.group(weight) / self.scale
        return on_grid(steps, self.zero_point, self.scale, self.grid).reshape(weight.shape)

    def __init__(self, weight: Tensor, *, grid: Grid, ranges: Ranges) -> None:
        super().__init__()
        self.grid = grid
        # Soft while training; only AdaRound tells the two apart.
        self.hard = False
        with torch.no_grad():
            self._start(grid.granularity.group(weight.detach()), ranges)

    def _start(self, values: Tensor, ranges: Ranges) -> None:
        """Set the first scale and zero point of values [groups, elements]."""
        scale, zero_point = ranges(values, self.grid)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def dequantization_scale(self) -> Tensor:
        """Return the scale [groups, 1] that multiplies the codes, differentiable if learned."""
        return self.scale

    def dequantization_zero_point(self) -> Tensor:
        """Return the zero point [groups, 1] that is taken from the codes."""
        return self.zero_point

    def rescale(self, weight: Tensor) -> Tensor:
        """Return the weight as it enters the rounding, [out, in, *kernel]."""
        return weight

    def round(self, values: Tensor, scale: Tensor) -> Tensor:
        """Return values [groups, elements] on the grid of scale [groups, 1], differentiable."""
        return fake_quantize(values, scale, self.dequantization_zero_point(), self.grid)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized weight, same shape: rescaled, rounded, dequantized.

        A method whose equation has a kernel of its own overrides this as a whole, and then its
        rescale and round are not called.
        """
        values = self.grid.granularity.group(self.rescale(weight))
        return self.round(values, self.dequantization_scale()).reshape(weight.shape)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups; lr is the setting's learning rate."""
        params = [p for p in self.parameters() if p.requires_grad]
        return [{"params": params, "lr": lr}] if params else []

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return what takes the steps of groups, those of all quantizers of a unit."""
        return Adam(groups)

    def regularizer(self, progress: float) -> Tensor | float:
        """Return what is added to the reconstruction loss; progress runs from 0 to 1."""
        return 0.0

    def after_step(self) -> None:
        """Project the parameters back to where they are allowed, after each optimizer step."""

    def harden(self) -> None:
        """Replace soft rounding by its final, hard decision."""
        self.hard = True

    @torch.no_grad()
    def finalize(self, weight: Tensor) -> QuantizedTensor:
        """Return the integers that `forward(weight)` stands for once hard."""
        scale, zero_point = self.dequantization_scale(), self.dequantization_zero_point()
        # Read off the result: level * scale / scale misses the level by far less than a half.
        codes = self.grid.encode(self.grid.granularity.group(self(weight)), scale, zero_point)
        codes = codes.to(torch.int16).reshape(weight.shape)
        return QuantizedTensor(codes, scale.clone(), zero_point.clone(), self.grid)


class QuantizerFactory(Protocol):
    """Builds the quantizer of one weight: a WeightQuantizer class with its options bound."""

    def __call__(self, weight: Tensor, *, grid: Grid, ranges: Ranges) -> WeightQuantizer:
        """Return a quantizer for weight [out, in, *kernel]."""
        ...
