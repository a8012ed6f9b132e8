"""Inputs that a block's layers take in the full-precision network, beside those that they get."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from flexround.calibration.calls import ended_at, inputs_taken
from flexround.models.base import ModelAdapter
from flexround.reconstruction.block_walk import BlockAtWork
from flexround.reconstruction.together import Together
from flexround.solvers.base import Solver
from flexround.solvers.hessian import Call
from flexround.structure import Layer


def check_no_experts(solver: Solver, adapter: ModelAdapter) -> None:
    """Check that every layer sees the tokens in the quantized network that it sees in the other.

    Raises:
        ValueError: when experts of a mixture may not; names the layer.
    """
    for block in adapter.blocks():
        for layer in block.layers:
            if layer.expert is not None:
                raise ValueError(
                    f"layer {layer.name} is an expert's, to which the quantized network may send "
                    f"other tokens than the full-precision one, and {type(solver).__name__} "
                    "compares the two token by token; give quant=gptq"
                )


class ExactBlock:
    """A block at work as it came: the weights of its layers, put back for a pass over a batch."""

    def __init__(self, work: BlockAtWork) -> None:
        self._work = work
        self._weights = [_weight(layer).detach().clone() for layer in work.block.layers]

    def inputs(self, together: Together, batch: Tensor, device: torch.device) -> dict[Call, Tensor]:
        """Return what each call of layers takes on the plain samples at indices batch."""
        names = {layer.module: layer.name for layer in together.layers}

        def run() -> None:
            with ended_at(together.calls):
                self._work.plain.replay(self._work.block.module, batch, device)

        with self._put_back():
            taken = inputs_taken(names, run)
        calls: Counter[str] = Counter()
        found = {}
        for module, tensor in taken:
            name = names[module]
            found[name, calls[name]] = tensor
            calls[name] += 1
        return found

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        held = [_weight(layer) for layer in self._work.block.layers]
        quantized = [weight.data for weight in held]
        for weight, exact in zip(held, self._weights, strict=True):
            weight.data = exact
        try:
            yield
        finally:
            for weight, own in zip(held, quantized, strict=True):
                weight.data = own


def _weight(layer: Layer) -> nn.Parameter:
    return cast(nn.Parameter, layer.module.weight)
