"""Adam as the loop takes its steps: torch's fused one, with little besides its arithmetic.

The equation and the order of its operations are those of torch.optim.Adam with fused=True: the
parameters are the same to the last bit. Groups of the same options are one, and what torch gathers
anew in each step is gathered once: on a block of small layers that is half of a step's time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

OTHER = ("weight_decay", "amsgrad", "maximize")  # options of a group that torch's own step takes


class _Group(NamedTuple):
    """A group's options, which a scheduler changes, and its tensors in order."""

    options: dict[str, Any]
    params: list[Tensor]
    averages: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]


class Adam(torch.optim.Adam):
    """p <- p - lr m / (sqrt(v) + eps), m and v the averages of gradients and of their squares."""

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float = 1e-3) -> None:
        super().__init__(joined(groups), lr=lr, fused=True)
        self._gathered: list[_Group] = []

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Let go of all gradients."""
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step."""
        grads = [[param.grad for param in group["params"]] for group in self.param_groups]
        told = any(group[name] for group in self.param_groups for name in OTHER)
        # A parameter that no sample has reached stays as it is.
        if told or any(grad is None for group in grads for grad in group):
            super().step()
            return
        if not self._gathered:
            super().step()  # makes the state
            self._gathered = [self._gather(group) for group in self.param_groups]
            return
        for (options, *tensors, steps), own in zip(self._gathered, grads, strict=True):
            params, averages, squares = tensors
            beta1, beta2 = options["betas"]
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                params, own, averages, squares, [], steps, amsgrad=False, lr=options["lr"],
                beta1=beta1, beta2=beta2, weight_decay=0.0, eps=options["eps"], maximize=False,
            )  # fmt: skip

    def _gather(self, group: dict[str, Any]) -> _Group:
        params = group["params"]
        names = ("exp_avg", "exp_avg_sq", "step")
        return _Group(group, params, *([self.state[p][name] for p in params] for name in names))


def joined(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return groups in order, those of the same options as one."""
    found: list[dict[str, Any]] = []
    for group in groups:
        options = {name: value for name, value in group.items() if name != "params"}
        for same in found:
            if {**same, "params": None} == {**options, "params": None}:
                same["params"] += group["params"]
                break
        else:
            found.append({**options, "params": list(group["params"])})
    return found
