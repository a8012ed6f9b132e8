"""The iterations of one unit: draw a batch, take a step, tell how far it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flexround.observers import Observer

# How often the loss is read: each reading makes a GPU wait.
READ_EVERY = 10

Schedule = Literal["constant", "cosine"]


def adam(
    groups: Sequence[dict[str, Any]], schedule: Schedule, iters: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]:
    """Return Adam over groups, and what takes its rates down to 0 over iters, or None."""
    optimizer = torch.optim.Adam(list(groups), fused=True)
    if schedule == "constant":
        return optimizer, None
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iters)


@dataclass(frozen=True)
class Descent:
    """Stochastic descent over the calibration samples of the unit called name."""

    name: str
    iters: int
    batch_size: int
    generator: torch.Generator
    observers: Sequence[Observer]

    def run(
        self,
        samples: int,
        losses: Callable[[Tensor, float], tuple[Tensor, Tensor]],
        optimizers: Sequence[
            tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]
        ],
        after_step: Callable[[], None],
    ) -> None:
        """Take all steps; losses gives (error, loss) of a batch of indices at a progress in [0, 1).

        Raises:
            ValueError: when the loss is not finite; names the unit.
        """
        for iteration in range(self.iters):
            batch = torch.randperm(samples, generator=self.generator)[: self.batch_size]
            error, loss = losses(batch, iteration / self.iters)
            for optimizer, _ in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer, scheduler in optimizers:
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
            after_step()
            if iteration % READ_EVERY == 0 or iteration == self.iters - 1:
                self._read(iteration, loss, error)

    def _read(self, iteration: int, loss: Tensor, error: Tensor) -> None:
        if not math.isfinite(loss.item()):
            raise ValueError(
                f"block {self.name}: the loss is {loss.item()} at iteration {iteration}; "
                "lower recon.lr"
            )
        for observer in self.observers:
            observer.step(self.name, iteration, error.item())
