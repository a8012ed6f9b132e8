"""The full-precision blocks' outputs, which all runs on one model and calibration set share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Targets:
    """Computes the outputs of each block; a subclass may find them where another run left them."""

    def of(self, block: int, compute: Callable[[], Tensor]) -> Tensor:
        """Return the outputs [samples, ...] of the block at that place, wherever they lie."""
        return compute()
