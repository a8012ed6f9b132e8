"""What a method costs on one unit: parameters it learns, bytes it holds, arithmetic it does."""

from __future__ import annotations

from dataclasses import dataclass


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
