"""Quantizers of activations: a learned step size for a tensor (LSQ), or a range for each token.

Sources: LSQ (arXiv 1902.08153); QDrop's random dropping of the quantization (arXiv 2203.05740);
LRQ's per-token activations and its 8-bit keys and values (arXiv 2407.11534).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flexround.grid import Grid, PerTensor
from flexround.kernels.fake_quantize import fake_quantize
from flexround.kernels.qdrop import DroppedFakeQuantize
from flexround.ranges import SCALE_FLOOR, MinMax, Ranges

# What a tracer of the model sees in the place of a quantizer of tensors: one node of a graph.
FAKE_QUANTIZE = "flexround::FakeQuantize"
# Values that a range is searched on; more change a scale by less than a step of the search.
SEARCHED = 1 << 18


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


class TensorQuantizer(ActivationQuantizer):
    """x_hat = s * (clamp(round(x / s) + z, qmin, qmax) - z) with one s and z for the tensor.

    The first tensor that it sees sets s and z. In the symmetric setting values that are never
    negative take the unsigned codes 0 .. 2^bits - 1.
    """

    def __init__(self, name: str, bits: int, symmetric: bool, ranges: Ranges) -> None:
        super().__init__(name, bits)
        self.symmetric, self.ranges = symmetric, ranges
        self.scale: nn.Parameter
        self.zero_point: Tensor
        self.grid: Grid | None = None

    @property
    def initialized(self) -> bool:
        """Whether a tensor has set the range."""
        return self.grid is not None

    def parameters_to_learn(self) -> list[nn.Parameter]:
        """Return the step size."""
        return [self.scale]

    def forward(self, x: Tensor, quant_prob: float, generator: torch.Generator) -> Tensor:
        """Return x fake-quantized, differentiable in x and in the step size.

        Each element is quantized with probability quant_prob, drawn by generator, and else left.
        """
        if self.grid is None:
            self._start(x.detach())
        assert self.grid is not None, "_start sets it"
        if torch.compiler.is_exporting():
            return self._node(x)
        low, high = self.grid.qmin - self.zero_point, self.grid.qmax - self.zero_point
        # Half precision is too coarse for 8-bit codes.
        values = x.reshape(-1).to(torch.promote_types(x.dtype, torch.float32))
        out: Tensor = DroppedFakeQuantize.apply(
            values, self.scale, low, high, quant_prob, generator
        )
        return out.reshape(x.shape).to(x.dtype)

    def after_step(self) -> None:
        """Keep the step size positive."""
        self.scale.data.clamp_(min=SCALE_FLOOR)

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

    @torch.no_grad()
    def _start(self, x: Tensor) -> None:
        if not torch.isfinite(x).all():
            raise ValueError(f"activation {self.name}: it holds values that are not finite")
        low, high = x.float().aminmax()
        grid = Grid(self.bits, bool(self.symmetric and low < 0), PerTensor())
        stride = max(1, x.numel() // SEARCHED)
        values = torch.cat([x.reshape(-1)[::stride].float(), low[None], high[None]])
        scale, zero_point = self.ranges(values[None], grid)
        self._set(scale.squeeze(), zero_point.squeeze(), grid.symmetric)


class TokenQuantizer(ActivationQuantizer):
    """An asymmetric min-max range for each token [..., hidden], found as the token comes."""

    def __init__(self, name: str, bits: int) -> None:
        super().__init__(name, bits)
        self.grid = Grid(bits, symmetric=False, granularity=PerTensor())

    def forward(self, x: Tensor, quant_prob: float, generator: torch.Generator) -> Tensor:
        """Return x fake-quantized, differentiable in x, all of it whatever quant_prob says."""
        if torch.compiler.is_exporting():
            raise ValueError(
                f"activation {self.name}: its range is found for each token as it comes, which "
                "QuantizeLinear cannot; give activation=static_per_tensor without kv_bits"
            )
        tokens = x.reshape(-1, x.shape[-1]).float()
        scale, zero_point = MinMax()(tokens.detach(), self.grid)
        return fake_quantize(tokens, scale, zero_point, self.grid).reshape(x.shape).to(x.dtype)
