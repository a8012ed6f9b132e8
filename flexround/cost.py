"""Cost of a method on one unit: parameters it learns, bytes it holds, arithmetic it does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """The cost of a unit, a layer or a whole model.

    Attributes:
        parameters: numbers that are learned.
        state_bytes: of the parameters, their gradients, the optimizer's state and kept copies, or
            of a solver's Hessian and working copies; activations are not counted.
        flops: of matrix products and convolutions, two for a multiplication with its addition;
            what is done element by element is not counted.
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
        with FlopCounterMode(display=False) as counter:
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
