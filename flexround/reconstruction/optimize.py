"""Iterations of one unit: draw a mini-batch, take a step, tell how far it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flexround.cost import StepCounter, training_cost
from flexround.quantizers.adam import Adam
from flexround.reconstruction.callbacks import Callback
from flexround.reconstruction.early_end import EarlyEnd
from flexround.reconstruction.report import Curve, Iterations

# How often the loss is read: each reading makes a GPU wait.
READ_EVERY = 10

Schedule = Literal["constant", "cosine", "linear"]
Scheduled = tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler | None]


def scheduled(optimizer: torch.optim.Optimizer, schedule: Schedule, iters: int) -> Scheduled:
    """Return optimizer with what takes its rates down to 0 over iters, or None."""
    if schedule == "constant":
        return optimizer, None
    if schedule == "linear":
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / iters)
        return optimizer, rates
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iters)


def step_size_optimizer(sizes: Sequence[torch.nn.Parameter], lr: float, iters: int) -> Scheduled:
    """Return Adam over activations' step sizes, its rate taken down to 0 by a cosine."""
    return scheduled(Adam([{"params": list(sizes), "lr": lr}]), "cosine", iters)


class BestParameters:
    """Holds the parameters of the lowest error so far."""

    def __init__(self, params: Sequence[torch.nn.Parameter]) -> None:
        self._params = params
        self._held = [torch.empty_like(param) for param in params]
        self._error: Tensor | None = None

    @torch.no_grad()
    def see(self, error: Tensor) -> None:
        """Keep the parameters as they are now when error [] is lower than any before."""
        lowest = torch.full_like(error, math.inf) if self._error is None else self._error
        better = error < lowest
        self._error = torch.where(better, error, lowest)
        if error.device.type == "cpu" and not better:
            return
        for held, param in zip(self._held, self._params, strict=True):
            if error.device.type == "cpu":
                held.copy_(param)
            else:  # a branch would wait for the GPU
                torch.where(better, param, held, out=held)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the kept values back."""
        for param, held in zip(self._params, self._held, strict=True):
            param.copy_(held)


@dataclass(frozen=True)
class UnitOptimizer:
    """Stochastic descent over the calibration samples of the unit called name.

    Attributes:
        rates: the options that say the rate, for the user whose loss overflows.
    """

    name: str
    rates: str
    iters: int
    batch_size: int
    generator: torch.Generator
    callbacks: Sequence[Callback]

    def run(
        self,
        samples: int,
        losses: Callable[[Tensor, float], tuple[Tensor, Tensor]],
        optimizers: Sequence[Scheduled],
        after_step: Callable[[], None],
        best: BestParameters | EarlyEnd | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Iterations:
        """Take the steps, all of them unless best ends them early, and return what they were.

        losses gives (error, loss) of a batch of indices at a progress in [0, 1).

        With best the parameters are restored in the end that had the lowest error: of their
        mini-batch, or of the held-out samples. check looks at the first gradients.

        Raises:
            ValueError: when the loss is not finite, or has no learned parameter in it; names the
                unit.
        """
        counter, curve, taken = StepCounter(), Curve(), 0
        for iteration in range(self.iters):
            batch = torch.randperm(samples, generator=self.generator)[: self.batch_size]
            for optimizer, _ in optimizers:
                optimizer.zero_grad()
            with counter.first(iteration):
                error, loss = losses(batch, iteration / self.iters)
                if isinstance(best, BestParameters):
                    best.see(error.detach())
                if not loss.requires_grad:
                    raise ValueError(
                        f"{self.name}: no learned parameter reaches the loss; a method's have to "
                        "be in what runs (rescale, round, dequantization_scale, or forward as a "
                        "whole), not in reference alone"
                    )
                loss.backward()
            if not iteration:
                check()
            for optimizer, scheduler in optimizers:
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
            after_step()
            taken = iteration + 1
            ends = isinstance(best, EarlyEnd) and best.ends(taken)
            if iteration % READ_EVERY == 0 or ends or taken == self.iters:
                curve.append([iteration, self._read(iteration, loss, error)])
            if ends:
                break
        if best is not None:
            best.restore()
        own = [optimizer for optimizer, _ in optimizers]
        learned = [p for optimizer in own for g in optimizer.param_groups for p in g["params"]]
        kept = 0 if best is None else 1
        cost = training_cost(learned, own, kept, counter.flops * taken)
        return Iterations(taken, cost, curve, best.curve if isinstance(best, EarlyEnd) else [])

    def _read(self, iteration: int, loss: Tensor, error: Tensor) -> float:
        # One wait for a GPU, not one for each of them.
        both = torch.stack([loss.detach().double(), error.detach().double()]).cpu()
        whole, value = float(both[0]), float(both[1])
        if not math.isfinite(whole):
            raise ValueError(
                f"block {self.name}: the loss is {whole} at iteration {iteration}; "
                + (f"lower {self.rates}" if iteration else "it overflows before a step; raise bits")
            )
        for callback in self.callbacks:
            callback.step(self.name, iteration, value)
        return value
