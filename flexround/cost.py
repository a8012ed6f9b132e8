"""Cost of a method on one unit: parameters it learns, bytes it holds, arithmetic it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
Shape = Sequence[int]


@dataclass(frozen=True)
class Cost:
    """The cost of a unit, a layer or a whole model.

    Attributes:
        parameters: numbers that are learned.
        state_bytes: of the parameters, their gradients, the optimizer's state and kept copies, or
            of a solver's Hessian and working copies; activations are not counted.
        flops: of matrix products, convolutions and attention's two products, two for a
            multiplication with its addition; what is done element by element is not counted. A
            kernel that computes something again in its backward pass does not count it twice, so
            that every device has the same figure.
    """

    parameters: int = 0
    state_bytes: int = 0
    flops: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of both, held at once."""
        return Cost(
            self.parameters + other.parameters,
            self.state_bytes + other.state_bytes,
            self.flops + other.flops,
        )

    def then(self, other: Cost) -> Cost:
        """Return the cost of both, one after the other."""
        both = self + other
        return replace(both, state_bytes=max(self.state_bytes, other.state_bytes))


def _convolution(x: Shape, weight: Shape, out: Shape, transposed: bool) -> int:
    """Return the operations of a convolution by weight [out, in / groups, ...] of x [n, in, ...].

    A transposed one has weight [in, out / groups, ...], and every input goes through it once.
    """
    positions = math.prod((x if transposed else out)[2:])
    return 2 * x[0] * positions * math.prod(weight)


def _convolution_forward(
    x: Shape, weight: Shape, _bias: Any, _stride: Any, _padding: Any, _dilation: Any,
    transposed: bool, *_: Any, out_shape: Shape, **__: Any,
) -> int:  # fmt: skip
    return _convolution(x, weight, out_shape, transposed)


def _convolution_backward(
    slope: Shape, x: Shape, weight: Shape, _bias: Any, _stride: Any, _padding: Any, _dilation: Any,
    transposed: bool, _out_padding: Any, _groups: Any, wanted: Sequence[bool], *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Return those of its backward pass: as many for the input's slopes, and for the weight's.

    torch's own formula takes the weight's for a convolution between all channels: groups times too
    many.
    """
    return (wanted[0] + wanted[1]) * _convolution(x, weight, slope, transposed)


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Return the operations of Q K' and P V for query [batch, heads, tokens, size]."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(
    _slope: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any
) -> int:
    """Return those of the slopes of P, V, Q and K."""
    return 2 * _attention(query, key, value)


# torch counts no attention of a CPU, and on a GPU what kernels compute again.
_ATTENTION = (
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
)  # fmt: skip
_FORMULAS: dict[Any, Callable[..., int]] = {
    aten.convolution: _convolution_forward,
    aten._convolution: _convolution_forward,
    aten.convolution_backward: _convolution_backward,
} | {
    getattr(aten, name + end): formula
    for name in _ATTENTION
    for end, formula in (("", _attention), ("_backward", _attention_backward))
}


def flop_counter() -> FlopCounterMode:
    """Return a context that counts the operations inside as `Cost` does."""
    return FlopCounterMode(display=False, custom_mapping=_FORMULAS)


class StepCounter:
    """Counts the arithmetic of the first iteration and takes the others to be like it."""

    def __init__(self) -> None:
        self.flops = 0

    @contextmanager
    def first(self, iteration: int) -> Iterator[None]:
        """Count what runs inside when iteration is 0."""
        if iteration:
            yield
            return
        with flop_counter() as counter:
            yield
        self.flops = counter.get_total_flops()


def training_cost(
    params: Iterable[nn.Parameter],
    optimizers: Iterable[torch.optim.Optimizer],
    kept: int,
    flops: float,
) -> Cost:
    """Return the cost of learning params; kept is how many copies of them are held besides."""
    learned = list(params)
    held: list[Tensor] = [p.grad for p in learned if p.grad is not None]
    for optimizer in optimizers:
        held += [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    own = sum(p.nbytes for p in learned)
    return Cost(
        parameters=sum(p.numel() for p in learned),
        state_bytes=(1 + kept) * own + sum(tensor.nbytes for tensor in held),
        flops=flops,
    )
