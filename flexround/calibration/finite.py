"""Checks that activations are finite, at the place that makes them.

A NaN goes through every block behind it and ends as the loss of a unit that has no part in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

ROWS = 64  # samples looked at together: what is held on disk need not fit into memory


def first_not_finite(values: Tensor) -> int | None:
    """Return the first sample of values [samples, ...] that is not finite, None where all are."""
    if not values.is_floating_point():
        return None
    for start in range(0, len(values), ROWS):
        rows = torch.isfinite(values[start : start + ROWS])
        rows = rows.reshape(len(rows), -1).all(dim=1)
        if not rows.all():
            return start + int(rows.int().argmin())
    return None


def check_finite(parts: Iterable[Tensor], message: str) -> Iterator[Tensor]:
    """Yield parts [samples, ...] of a calibration set as they come.

    Raises:
        ValueError: message, with the sample's number in the place of {sample}, when one is not
            finite.
    """
    seen = 0
    for part in parts:
        found = first_not_finite(part)
        if found is not None:
            raise ValueError(message.format(sample=seen + found))
        seen += len(part)
        yield part
