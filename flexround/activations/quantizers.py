"""Quantizers of activations: a learned step size for a tensor (LSQ), or a range for each token.

Sources: LSQ (arXiv 1902.08153); QDrop's random dropping of the quantization (arXiv 2203.05740);
LRQ's per-token activations and its 8-bit keys and values (arXiv 2407.11534).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from flexround.activations.sampling import condense, sample
from flexround.grid import Grid, PerTensor
from flexround.kernels.fake_quantize import fake_quantize, traceable_fake_quantize
from flexround.kernels.qdrop import DroppedFakeQuantize
from flexround.ranges import SCALE_FLOOR, MinMax, Ranges

# What our own tracer of the model sees in the place of a quantizer of tensors: one node of a graph,
# which computes nothing. Every other tracer is to see the computation.
FAKE_QUANTIZE = "flexround::FakeQuantize"
_AS_NODES = ContextVar("as_nodes", default=False)
# Elements drawn for a range, and values that stand for them in its search. On channels of very
# different scales the range is within some percent of that of all elements (tests).
SAMPLED, SEARCHED = 1 << 20, 1 << 18


@contextmanager
def as_nodes() -> Iterator[None]:
    """Have quantizers that torch.export traces in the context be nodes FAKE_QUANTIZE."""
    token = _AS_NODES.set(True)
    try:
        yield
    finally:
        _AS_NODES.reset(token)


class ActivationQuantizer(nn.Module):
    """Maps an activation of any shape to the fake-quantized one."""

    bits: int

    def __init__(self, name: str, bits: int) -> None:
        super().__init__()
        self.name, self.bits = name, bits

    @property
    def initialized(self) -> bool:
        """Whether it has a range, or needs none."""
        return True

    def observe(self, x: Tensor, share: float, generator: torch.Generator) -> None:
        """See x, which is share of all that sets the range."""

    def set_range(self) -> None:
        """Set the range from what was observed."""

    def parameters_to_learn(self) -> list[nn.Parameter]:
        """Return what can be learned."""
        return []

    def after_step(self) -> None:
        """Project what is learned back to where it is allowed."""

    def qparams(self) -> dict[str, Tensor]:
        """Return what makes a range, by name; nothing where it comes with the tensor."""
        return {}

    def load_qparams(self, held: dict[str, Tensor]) -> None:
        """Take over what qparams() of another one gave."""


class _Observed:
    """Elements of what was observed, and its ends."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self._ends: list[Tensor] = []
        self._draws: torch.Generator | None = None

    def add(self, x: Tensor, count: int, generator: torch.Generator) -> None:
        """Keep count elements of x, drawn anew from generator's seed in every run of a model."""
        if self._draws is None:
            # On the CPU whatever the device; and what generator itself has drawn does not matter.
            self._draws = torch.Generator().manual_seed(generator.initial_seed())
        self.parts.append(sample(x, count, self._draws).float())
        self._ends += x.float().aminmax()

    def ends(self) -> Tensor:
        """Return the smallest and the largest of all values, [2]."""
        return torch.stack(torch.stack(self._ends).aminmax())


class TensorQuantizer(ActivationQuantizer):
    """x_hat = s * (clamp(round(x / s) + z, qmin, qmax) - z) with one s and z for the tensor.

    What it has observed sets s and z, or else the first tensor that it is to quantize. In the
    symmetric setting values that are never negative take the unsigned codes 0 .. 2^bits - 1.
    """

    def __init__(self, name: str, bits: int, symmetric: bool, ranges: Ranges) -> None:
        super().__init__(name, bits)
        self.symmetric, self.ranges = symmetric, ranges
        self.scale: nn.Parameter
        self.zero_point: Tensor
        self.grid: Grid | None = None
        self._observed = _Observed()

    @property
    def initialized(self) -> bool:
        """Whether a tensor has set the range."""
        return self.grid is not None

    def parameters_to_learn(self) -> list[nn.Parameter]:
        """Return the step size."""
        return [self.scale]

    def forward(self, x: Tensor, quant_prob: float, generator: torch.Generator) -> Tensor:
        """Return x fake-quantized, differentiable in x and in the step size.

        Each element is quantized with probability quant_prob, drawn by generator, and else left;
        in a program that torch.export makes all are.
        """
        if self.grid is None:
            if not x.numel():
                return x  # of an expert that no token is sent to
            self.observe(x, 1.0, generator)
            self.set_range()
        assert self.grid is not None, "set_range sets it"
        if self.scale.device != x.device:
            self.to(x.device)  # the network was moved, of which quantizers are no part
        exporting = torch.compiler.is_exporting()
        if exporting and _AS_NODES.get():
            return self._node(x)
        low, high = self.grid.qmin - self.zero_point, self.grid.qmax - self.zero_point
        # Half precision is too coarse for 8-bit codes.
        values = x.reshape(-1).to(torch.promote_types(x.dtype, torch.float32))
        out: Tensor
        if exporting:
            out = traceable_fake_quantize(values, self.scale, low, high)
        else:
            out = DroppedFakeQuantize.apply(values, self.scale, low, high, quant_prob, generator)
        return out.reshape(x.shape).to(x.dtype)

    @torch.no_grad()
    def observe(self, x: Tensor, share: float, generator: torch.Generator) -> None:
        """See x, which is share of all that sets the range; generator's seed decides the sample.

        Raises:
            ValueError: when x is not finite.
        """
        if self.grid is not None or not x.numel():
            return
        if not torch.isfinite(x).all():
            raise ValueError(
                f"activation {self.name}: it holds values that are not finite, though the inputs "
                "of its block are"
            )
        self._observed.add(x.detach(), math.ceil(share * SAMPLED), generator)

    @torch.no_grad()
    def set_range(self) -> None:
        """Set the step size and the zero point from what was observed, if it was."""
        seen = self._observed
        if self.grid is not None or not seen.parts:
            return
        ends = seen.ends()
        grid = Grid(self.bits, bool(self.symmetric and ends[0] < 0), PerTensor())
        values = condense(torch.cat(seen.parts), SEARCHED)[None]
        scale, zero_point = found = self.ranges(values, grid)
        if all(map(torch.equal, found, MinMax()(values, grid))):  # all of the sample: all there is
            scale, zero_point = MinMax()(ends[None], grid)
        self._set(scale.squeeze(), zero_point.squeeze(), grid.symmetric)
        self._observed = _Observed()

    def after_step(self) -> None:
        """Keep the step size positive: one that has crossed zero is reflected, as in QDrop's code.

        Set to next to nothing, it would clip all there is, and one such gradient would fill Adam's
        second moment for the rest of the iterations.
        """
        self.scale.data.abs_().clamp_(min=SCALE_FLOOR)

    def qparams(self) -> dict[str, Tensor]:
        """Return the step size, the zero point, and whether codes are around 0."""
        if self.grid is None:
            return {}
        signed = torch.tensor(self.grid.symmetric)
        return {"scale": self.scale.detach(), "zero_point": self.zero_point, "signed": signed}

    def load_qparams(self, held: dict[str, Tensor]) -> None:
        """Take over what qparams() of another one gave."""
        if held:
            self._set(held["scale"], held["zero_point"], bool(held["signed"]))

    def _node(self, x: Tensor) -> Tensor:
        """Return x as the output of one node of the graph that is being traced."""
        assert self.grid is not None, "forward starts it"
        attributes: Any = {
            "name": self.name,
            "scale": self.scale.item(),
            "zero_point": int(self.zero_point),
            "qmin": self.grid.qmin,
            "qmax": self.grid.qmax,
        }
        return torch.onnx.ops.symbolic(
            FAKE_QUANTIZE, (x,), attributes, dtype=x.dtype, shape=x.shape, version=1
        )

    def _set(self, scale: Tensor, zero_point: Tensor, signed: bool) -> None:
        self.scale = nn.Parameter(scale)
        self.register_buffer("zero_point", zero_point)
        self.grid = Grid(self.bits, signed, PerTensor())


class TokenQuantizer(ActivationQuantizer):
    """An asymmetric min-max range for each token [..., hidden], found as the token comes."""

    def __init__(self, name: str, bits: int) -> None:
        super().__init__(name, bits)
        self.grid = Grid(bits, symmetric=False, granularity=PerTensor())

    def forward(self, x: Tensor, quant_prob: float, generator: torch.Generator) -> Tensor:
        """Return x fake-quantized, differentiable in x, all of it whatever quant_prob says."""
        exporting = torch.compiler.is_exporting()
        if exporting and _AS_NODES.get():
            raise ValueError(
                f"activation {self.name}: its range is found for each token as it comes, which "
                "QuantizeLinear cannot; give activation=static_per_tensor without kv_bits"
            )
        tokens = x.reshape(-1, x.shape[-1]).float()
        scale, zero_point = MinMax()(tokens.detach(), self.grid)
        if exporting:
            low, high = self.grid.qmin - zero_point, self.grid.qmax - zero_point
            out = traceable_fake_quantize(tokens, scale, low, high)
        else:
            out = fake_quantize(tokens, scale, zero_point, self.grid)
        return out.reshape(x.shape).to(x.dtype)
