"""Hessian of a layer's output error: H = 2 / N sum x x^T over its inputs x."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from flexround.structure import Layer


def rows_of(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return inputs as the vectors that a row of module's weight meets, [groups, vectors, in].

    A convolution's are its patches (im2col), by group; a linear layer has one group.
    """
    if not isinstance(module, nn.Conv2d):
        return inputs.reshape(1, -1, inputs.shape[-1])
    assert not isinstance(module.padding, str), "padding by name is resolved by no layer we meet"
    patches = nn.functional.unfold(
        inputs, module.kernel_size, module.dilation, module.padding, module.stride
    )  # [samples, in * kernel, places]
    samples, _, places = patches.shape
    patches = patches.view(samples, module.groups, -1, places)
    return patches.permute(1, 0, 3, 2).reshape(module.groups, samples * places, -1)


def _geometry(module: nn.Module) -> Any:
    """Return what decides which vectors module makes of a tensor."""
    if not isinstance(module, nn.Conv2d):
        return None
    return module.kernel_size, module.dilation, module.padding, module.stride, module.groups


class Hessians:
    """Sums x x^T of layers while a model runs; layers with the same input vectors share one sum."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._owner: dict[str, str] = {}
        self._last: tuple[Tensor, Any, str] | None = None

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Add what the layers take until the context ends."""
        handles = [
            layer.module.register_forward_pre_hook(self._hook(layer)) for layer in self._layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._last = None

    def of(self, layer: Layer) -> Tensor:
        """Return layer's H [groups, in, in] in float64.

        Raises:
            ValueError: when no input reached it.
        """
        owner = self._owner.get(layer.name)
        if owner is None:
            raise ValueError(f"layer {layer.name}: no sample reaches it")
        return self._sums[owner] * (2 / self._counts[owner])

    def flops(self, layer: Layer) -> float:
        """Return what summing layer's H took, 0 where another layer's serves it."""
        if self._owner[layer.name] != layer.name:
            return 0.0
        groups, into, _ = self._sums[layer.name].shape
        return 2.0 * groups * self._counts[layer.name] * into**2

    def _hook(self, layer: Layer) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            last = self._last
            if last is not None and last[0] is args[0] and last[1] == _geometry(module):
                self._owner[layer.name] = last[2]
                return
            self._last = args[0], _geometry(module), layer.name
            self._owner[layer.name] = layer.name
            rows = rows_of(module, args[0].detach().float())
            total = (rows.transpose(1, 2) @ rows).double()
            self._sums[layer.name] = self._sums.get(layer.name, 0) + total
            self._counts[layer.name] = self._counts.get(layer.name, 0) + rows.shape[1]

        return hook


def objective(weight: Tensor, quantized: Tensor, hessian: Tensor) -> Tensor:
    """Return the rows' (w_hat - w) H (w_hat - w)^T / 2, the mean squared error of an output, [out].

    weight and quantized are [out, in], hessian [groups, in, in].
    """
    change = (quantized - weight).double().view(len(hessian), -1, weight.shape[1])
    return ((change @ hessian) * change).sum(2).flatten() / 2
