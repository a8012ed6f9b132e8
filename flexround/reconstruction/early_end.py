"""Early end of a unit's iterations: where its error on samples held out of them no longer falls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from flexround.reconstruction.report import Curve

LOOKS = 20  # at the held-out error, evenly over a unit's iterations


class EarlyEnd:
    """Keeps the parameters of the lowest held-out error, and says when it no longer falls.

    Attributes:
        curve: [iterations taken, held-out error] of each look, the start first.
    """

    def __init__(
        self,
        patience: int,
        iters: int,
        error: Callable[[], float],
        params: Sequence[nn.Parameter],
    ) -> None:
        """Look for the first time; error gives the held-out error of params as they are."""
        self._patience, self._iters, self._error, self._params = patience, iters, error, params
        self._best, self._held = error(), [param.detach().clone() for param in params]
        self._behind = 0  # looks since the lowest
        self.curve: Curve = [[0, self._best]]

    def ends(self, taken: int) -> bool:
        """Return whether the iterations end once so many are taken; look where it is time to."""
        if taken * LOOKS // self._iters == (taken - 1) * LOOKS // self._iters:
            return False
        error = self._error()
        self.curve.append([taken, error])
        if error < self._best:
            self._best, self._behind = error, 0
            self._keep()
        else:
            self._behind += 1
        return self._behind >= self._patience

    @torch.no_grad()
    def _keep(self) -> None:
        for held, param in zip(self._held, self._params, strict=True):
            held.copy_(param)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the parameters of the lowest held-out error back."""
        for param, held in zip(self._params, self._held, strict=True):
            param.copy_(held)


def check_patience(patience: int, held_out: int) -> None:
    """Check that an early end has samples to look at, and looks to wait for.

    Raises:
        ValueError: when it has not.
    """
    if not 0 <= patience < LOOKS:
        raise ValueError(
            f"recon.patience={patience}: give 0, which takes all iterations, to {LOOKS - 1}; a "
            f"unit's held-out error is looked at {LOOKS} times"
        )
    if patience and not held_out:
        raise ValueError(
            f"recon.patience={patience} looks at held-out samples, and recon.held_out=0 keeps "
            "none; give recon.held_out=32, or leave recon.patience out"
        )
