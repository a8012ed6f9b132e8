"""Sums over a layer's inputs x that solvers work on: its Hessian, and how far x has drifted.

H = 2 / N sum x x^T. Where what the full-precision network gives the layer is known as well, x_fp,
the output to be met is W x_fp, and the error of Q is (Q - W) x - W (x_fp - x).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flexround.solvers.patches import counted_rows, geometry
from flexround.structure import Layer

Call = tuple[str, int]  # a layer, and which of its calls in a pass


@dataclass(frozen=True)
class Drift:
    """How far inputs x are from those of the full-precision network, d = x_fp - x.

    Attributes:
        across: 2 / N sum d x^T, [groups, in, in].
        along: 2 / N sum d d^T, likewise.
    """

    across: Tensor
    along: Tensor


class Hessians:
    """Sums x x^T of layers while a model runs; calls with the same input vectors share one sum.

    A layer that is called several times in a pass has the vectors of all its calls.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self._sums: dict[Call, Tensor] = {}
        self._drifts: dict[Call, tuple[Tensor, Tensor]] = {}
        self._counts: dict[Call, int] = {}
        self._calls: dict[str, set[Call]] = {layer.name: set() for layer in layers}
        self._last: tuple[Tensor, Any, Call] | None = None

    @contextmanager
    def collecting(
        self, mask: Tensor | None = None, exact: Mapping[Call, Tensor] | None = None
    ) -> Iterator[None]:
        """Add what the layers take in one pass over a batch, until the context ends.

        mask [samples, tokens] tells which tokens count, None where all do. exact has what each call
        takes in the full-precision network.
        """
        calls: Counter[str] = Counter()
        handles = [
            layer.module.register_forward_pre_hook(self._hook(layer, mask, calls, exact))
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
        return self._mean(layer, self._sums)

    def drift(self, layer: Layer) -> Drift:
        """Return the drift of layer's inputs in float64, where exact inputs were collected."""
        across, along = (
            self._mean(layer, {call: sums[i] for call, sums in self._drifts.items()})
            for i in range(2)
        )
        return Drift(across, along)

    def flops(self, layer: Layer) -> float:
        """Return what summing layer's H took, 0 where another layer's serves it."""
        own = [call for call in self._calls[layer.name] if call[0] == layer.name]
        sums = 3 if self._drifts else 1
        return sum(2.0 * sums * self._sums[call].numel() * self._counts[call] for call in own)

    def _mean(self, layer: Layer, sums: Mapping[Call, Tensor]) -> Tensor:
        calls = sorted(self._calls[layer.name])
        total = sum((sums[call] for call in calls[1:]), sums[calls[0]])
        return total * (2 / sum(self._counts[call] for call in calls))

    def _hook(
        self,
        layer: Layer,
        mask: Tensor | None,
        calls: Counter[str],
        exact: Mapping[Call, Tensor] | None,
    ) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            last, call = self._last, (layer.name, calls[layer.name])
            calls[layer.name] += 1
            if last is not None and last[0] is args[0] and last[1] == geometry(module):
                self._calls[layer.name].add(last[2])
                return
            self._last = args[0], geometry(module), call
            self._calls[layer.name].add(call)
            rows = counted_rows(layer, args[0].detach(), mask)
            total = (rows.transpose(1, 2) @ rows).double()
            self._sums[call] = self._sums.get(call, 0) + total
            self._counts[call] = self._counts.get(call, 0) + rows.shape[1]
            if exact is not None:
                drift = counted_rows(layer, exact[call], mask) - rows
                found = [(drift.transpose(1, 2) @ other).double() for other in (rows, drift)]
                before = self._drifts.get(call, (0.0, 0.0))
                self._drifts[call] = before[0] + found[0], before[1] + found[1]

        return hook


def objective(
    weight: Tensor, quantized: Tensor, hessian: Tensor, drift: Drift | None = None
) -> Tensor:
    """Return the mean squared error of each row's output, [out].

    That is c H c^T / 2 for c = w_hat - w, and with a drift, where the output to be met is the
    full-precision network's, (c H c^T - 2 w across c^T + w along w^T) / 2. weight and quantized are
    [out, in], hessian [groups, in, in].
    """
    change = (quantized - weight).double().view(len(hessian), -1, weight.shape[1])
    error = ((change @ hessian) * change).sum(2)
    if drift is not None:
        own = weight.double().view_as(change)
        error = error - 2 * ((own @ drift.across) * change).sum(2)
        error = error + ((own @ drift.along) * own).sum(2)
    return error.flatten() / 2
