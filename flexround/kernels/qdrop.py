"""Fake-quantization of a whole activation, each element left as it is with some probability.

QDrop (arXiv 2203.05740) keeps an element quantized with probability quant_prob. Values are worked
on a cache's worth at a time, and masks are kept as numbers 0 and 1: comparisons and selections by
booleans are several times slower on a CPU than arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flexround.kernels.chunking import CHUNK

RESOLUTION = 256  # quant_prob is rounded to a multiple of 1 / RESOLUTION, a byte's worth


def _chunks(values: Tensor) -> Iterator[slice]:
    step = CHUNK if values.device.type == "cpu" else max(1, len(values))
    for start in range(0, len(values), step):
        yield slice(start, min(start + step, len(values)))


def mask(like: Tensor, quant_prob: float, generator: torch.Generator) -> Tensor:
    """Return 1 with probability quant_prob and 0 otherwise for each element, in like's type."""
    words = torch.empty(-(-like.numel() // 8), dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=generator)
    bytes_ = words.view(torch.uint8)[: like.numel()]
    mask = torch.empty(like.numel(), dtype=like.dtype, device=like.device)
    threshold = round(quant_prob * RESOLUTION)
    for part in _chunks(mask):
        mask[part].copy_(bytes_[part]).neg_().add_(threshold).clamp_(0, 1)
    return mask.view(like.shape)


def mix(quantized: Tensor, plain: Tensor, quant_prob: float, generator: torch.Generator) -> Tensor:
    """Return each element of quantized with probability quant_prob, and of plain otherwise.

    generator lies on the tensors' device.
    """
    return torch.lerp(plain, quantized, mask(plain, quant_prob, generator))


class DroppedFakeQuantize(torch.autograd.Function):
    """x_hat = s * (clamp(round(x / s) + z, qmin, qmax) - z) where kept, x elsewhere.

    Straight-through for x, the bounds inside; LSQ's gradient (arXiv 1902.08153, eq. 3) for s.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        low: Tensor,
        high: Tensor,
        quant_prob: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Return x_hat of x [elements]; scale, low = qmin - z and high = qmax - z are scalars."""
        out, grad_mask = torch.empty_like(x), torch.empty_like(x)
        kept = mask(x, quant_prob, generator) if quant_prob < 1 else None
        for part in _chunks(x):
            rounded = (x[part] / scale).round_()
            levels = torch.maximum(rounded, low, out=out[part])
            levels = torch.minimum(levels, high, out=out[part])
            # Whole numbers: the distance to the range is 0, or at least 1.
            outside = rounded.sub_(levels).abs_().clamp_(max=1)
            levels.mul_(scale)
            if kept is not None:
                outside.mul_(kept[part])
                torch.lerp(x[part], levels, kept[part], out=levels)
            torch.sub(1, outside, out=grad_mask[part])
        ctx.save_for_backward(x, out, grad_mask, scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return d/dx = grad * grad_mask and d/ds = sum(grad * (x_hat - x * grad_mask)) / s."""
        x, out, grad_mask, scale = ctx.saved_tensors
        grad_x = torch.empty_like(grad)
        total = torch.zeros((), dtype=torch.float64, device=grad.device)
        for part in _chunks(grad):
            torch.mul(grad[part], grad_mask[part], out=grad_x[part])
            # The difference first: that of two sums would lose most of its digits.
            error = torch.addcmul(out[part], x[part], grad_mask[part], value=-1)
            total += torch.dot(grad[part], error)
        grad_scale = (total / scale.double()).to(scale.dtype).view(scale.shape)
        return grad_x, grad_scale, None, None, None, None
