"""Hadamard matrices: H of entries 1 and -1 with H H^T = n I, by Sylvester and by Paley.

R. E. A. C. Paley, On orthogonal matrices (1933): I for a prime q = 3 mod 4 has order q + 1, II for
a prime q = 1 mod 4 has order 2 (q + 1). Products with Sylvester's powers of two give the others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEAREST = 4  # sizes that a refusal tells


def hadamard(size: int) -> Tensor:
    """Return a Hadamard matrix [size, size] in float64.

    Raises:
        ValueError: when none is known here; names the sizes nearest to it that work.
    """
    for core in _cores(size):
        found = core
        while len(found) < size:
            found = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), found)
        return found
    below = [n for n in range(size - 1, 0, -1) if is_known(n)][:NEAREST]
    above, n = list[int](), size
    while len(above) < NEAREST:
        n += 1
        above += [n] if is_known(n) else []
    told = ", ".join(map(str, sorted(below + above)))
    raise ValueError(f"there is no Hadamard matrix of size {size} (nearest are {told})")


def is_known(size: int) -> bool:
    """Return whether `hadamard` has a matrix of that size."""
    return any(_paley_of(order) is not None for order in _orders(size))


def random_hadamard(size: int, generator: torch.Generator) -> Tensor:
    """Return Q = diag(signs) H / sqrt(size) [size, size], orthogonal, with signs that are drawn.

    x Q turns the signs of a row x before it is mixed, as in QuaRot's code. Turned behind, they
    would be signs of channels and nothing else: |x H diag(signs)| is the same for all of them.

    Raises:
        ValueError: as `hadamard` does.
    """
    signs = torch.randint(2, (size, 1), generator=generator).double() * 2 - 1
    return signs * hadamard(size) / math.sqrt(size)


def keeping_mean(rotation: Tensor) -> Tensor:
    """Return rotation behind the reflection that makes it keep the vector of ones, [size, size].

    A LayerNorm takes the mean from its input: it commutes with rotations that keep the mean alone.
    """
    size = len(rotation)
    ones = torch.full((size,), 1 / math.sqrt(size)).to(rotation)
    normal = rotation @ ones - ones
    if normal.norm() < 1e-12:
        return rotation
    normal = normal / normal.norm()
    return rotation - 2 * torch.outer(normal, rotation.T @ normal)


def _orders(size: int) -> list[int]:
    """Return size, size / 2, size / 4, ... down to an odd number."""
    found = [size]
    while found[-1] % 2 == 0:
        found.append(found[-1] // 2)
    return found


def _cores(size: int) -> list[Tensor]:
    """Return the smallest matrix that doubles to size, none where there is none."""
    for order in reversed(_orders(size)):
        kind = _paley_of(order)
        if kind is not None:
            return [_build(order, kind)]
    return []


def _paley_of(order: int) -> int | None:
    """Return which construction gives order: 0 for 1 and 2, Paley's 1 or 2; None for none."""
    if order in (1, 2):
        return 0
    if _is_prime(order - 1) and (order - 1) % 4 == 3:
        return 1
    half = order // 2 - 1
    return 2 if order % 2 == 0 and _is_prime(half) and half % 4 == 1 else None


def _build(order: int, kind: int) -> Tensor:
    if kind == 0:
        return torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)[:order, :order]
    prime = order - 1 if kind == 1 else order // 2 - 1
    squares = {i * i % prime for i in range(1, prime)}
    character = torch.tensor(
        [0.0] + [1.0 if i in squares else -1.0 for i in range(1, prime)], dtype=torch.float64
    )
    places = torch.arange(prime)
    jacobsthal = character[(places[:, None] - places) % prime]
    bordered = torch.ones(prime + 1, prime + 1, dtype=torch.float64)
    bordered[0, 0] = 0
    bordered[1:, 1:] = jacobsthal
    if kind == 1:  # skew: I + S
        bordered[1:, 0] = -1
        return bordered + torch.eye(prime + 1, dtype=torch.float64)
    on = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    off = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(bordered, on) + torch.kron(torch.eye(prime + 1, dtype=torch.float64), off)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % i for i in range(2, math.isqrt(number) + 1))
