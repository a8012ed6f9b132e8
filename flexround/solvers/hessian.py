"""Hessian of a layer's output error: H = 2 / N sum x x^T over its inputs x."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from flexround.models.experts import counted
from flexround.solvers.patches import geometry, rows_of
from flexround.structure import Layer

Call = tuple[str, int]  # a layer, and which of its calls in a pass


class Hessians:
    """Sums x x^T of layers while a model runs; calls with the same input vectors share one sum.

    A layer that is called several times in a pass has the vectors of all its calls.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self._sums: dict[Call, Tensor] = {}
        self._counts: dict[Call, int] = {}
        self._calls: dict[str, set[Call]] = {layer.name: set() for layer in layers}
        self._last: tuple[Tensor, Any, Call] | None = None

    @contextmanager
    def collecting(self, mask: Tensor | None = None) -> Iterator[None]:
        """Add what the layers take in one pass over a batch, until the context ends.

        mask [samples, tokens] tells which tokens count, None where all do.
        """
        calls: Counter[str] = Counter()
        handles = [
            layer.module.register_forward_pre_hook(self._hook(layer, mask, calls))
            for layer in self._layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._last = None

    def reached(self, layer: Layer) -> bool:
        """Return whether an input that counts has reached layer."""
        return any(self._counts[call] for call in self._calls[layer.name])

    def of(self, layer: Layer) -> Tensor:
        """Return layer's H [groups, in, in] in float64.

        Raises:
            ValueError: when no input reached it.
        """
        if not self.reached(layer):
            raise ValueError(f"layer {layer.name}: no sample reaches it")
        calls = sorted(self._calls[layer.name])
        total = sum((self._sums[call] for call in calls[1:]), self._sums[calls[0]])
        return total * (2 / sum(self._counts[call] for call in calls))

    def flops(self, layer: Layer) -> float:
        """Return what summing layer's H took, 0 where another layer's serves it."""
        own = [call for call in self._calls[layer.name] if call[0] == layer.name]
        return sum(2.0 * self._sums[call].numel() * self._counts[call] for call in own)

    def _hook(
        self, layer: Layer, mask: Tensor | None, calls: Counter[str]
    ) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            last, call = self._last, (layer.name, calls[layer.name])
            calls[layer.name] += 1
            if last is not None and last[0] is args[0] and last[1] == geometry(module):
                self._calls[layer.name].add(last[2])
                return
            self._last = args[0], geometry(module), call
            self._calls[layer.name].add(call)
            rows = rows_of(module, counted(layer, args[0].detach(), mask).float())
            total = (rows.transpose(1, 2) @ rows).double()
            self._sums[call] = self._sums.get(call, 0) + total
            self._counts[call] = self._counts.get(call, 0) + rows.shape[1]

        return hook


def objective(weight: Tensor, quantized: Tensor, hessian: Tensor) -> Tensor:
    """Return the rows' (w_hat - w) H (w_hat - w)^T / 2, the mean squared error of an output, [out].

    weight and quantized are [out, in], hessian [groups, in, in].
    """
    change = (quantized - weight).double().view(len(hessian), -1, weight.shape[1])
    return ((change @ hessian) * change).sum(2).flatten() / 2
