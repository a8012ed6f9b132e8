"""Two runs of one training side by side, ours and the authors' own code, on the same inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.layer_set import RealLayer
from flexround.grid import QuantizedTensor
from flexround.quantizers.base import WeightQuantizer
from flexround.reconstruction.optimize import BestParameters

BATCH = 4
CLAMP = torch.clamp
Penalty = Callable[[int], Tensor | float]


@dataclass
class Theirs:
    """The authors' side.

    Attributes:
        forward: returns the fake-quantized weight [out, in].
        params: all that it learns.
        optimizers: what takes the steps.
        penalty: returns what is added to the loss at an iteration.
    """

    forward: Callable[[], Tensor]
    params: Sequence[nn.Parameter]
    optimizers: Sequence[torch.optim.Optimizer]
    penalty: Penalty = lambda _: 0.0


def inclusive(x: Tensor, min: Any = None, max: Any = None, **rest: Any) -> Tensor:
    """Return clamp with the gradient of torch <= 2.13, 1 at the bounds."""
    if rest or not x.requires_grad:  # ours among them
        return CLAMP(x, min, max, **rest)
    held = CLAMP(x.detach(), min, max)
    return torch.where(held == x, x, held)


@contextmanager
def importing(repository: Path) -> Iterator[None]:
    """Import from repository, quietly and with the clamp it was written for, until the end."""
    before = set(sys.modules)
    sys.path.insert(0, str(repository))
    try:
        with ExitStack() as stack:
            stack.enter_context(mock.patch("torch.clamp", inclusive))
            for name in ("clamp", "clamp_"):  # none of them needs the one in place to be so
                stack.enter_context(mock.patch.object(torch.Tensor, name, inclusive))
            stack.enter_context(redirect_stdout(StringIO()))
            yield
    finally:
        sys.path.remove(str(repository))
        # Packages last: the paths of what lies inside are looked up by way of them.
        for name in sorted(set(sys.modules) - before, reverse=True):
            module = sys.modules[name]
            places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
            if any(str(place).startswith(str(repository)) for place in places):
                del sys.modules[name]


def descend(
    layer: RealLayer,
    forward: Callable[[], Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    iters: int,
    after: Callable[[int], None],
    penalty: Penalty = lambda _: 0.0,
    kept: BestParameters | None = None,
) -> None:
    """Reduce the error of layer's output; after is called with each iteration that has ended."""
    weight, x = layer.weight, layer.inputs
    target, draws = x @ weight.T, torch.Generator().manual_seed(0)
    for iteration in range(iters):
        batch = torch.randperm(len(x), generator=draws)[:BATCH]
        loss = (x[batch] @ forward().T - target[batch]).square().sum(-1).mean()
        if kept is not None:
            kept.see(loss.detach())
        for optimizer in optimizers:
            optimizer.zero_grad()
        (loss + penalty(iteration)).backward()
        for optimizer in optimizers:
            optimizer.step()
        after(iteration)
    if kept is not None:
        kept.restore()


def trained(
    layer: RealLayer,
    ours: WeightQuantizer,
    theirs: Theirs,
    lr: float,
    iters: int,
    signed: bool = False,
) -> tuple[QuantizedTensor, Tensor]:
    """Return our integers and their weight after iters on the same batches.

    signed is SignRound's protocol: a rate that falls to 0, and the best iteration kept.
    """
    groups = ours.param_groups(lr)
    for own, forward, optimizers, penalty, params in (
        (True, lambda: ours(layer.weight), [ours.optimizer(groups)],
         lambda i: ours.regularizer(i / iters), [p for g in groups for p in g["params"]]),
        (False, theirs.forward, theirs.optimizers, theirs.penalty, theirs.params),
    ):  # fmt: skip

        def after(iteration: int, own: bool = own, optimizers: Any = optimizers) -> None:
            if own:
                ours.after_step()
            for optimizer in optimizers if signed else ():
                for group in optimizer.param_groups:
                    group["lr"] = lr * (1 - (iteration + 1) / iters)

        kept = BestParameters(params) if signed else None
        descend(layer, forward, optimizers, iters, after, penalty, kept)
    ours.harden()
    with torch.no_grad():
        return ours.finalize(layer.weight), theirs.forward()


def same(found: QuantizedTensor, theirs: Tensor, scale: Tensor | None = None) -> float:
    """Return the share of our codes that theirs, a weight on scale [out, 1] or on ours, has."""
    levels = torch.round(theirs.detach() / (found.scale if scale is None else scale.detach()))
    return (found.codes - found.zero_point == levels).float().mean().item()
