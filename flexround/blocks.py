"""Record how a model calls a block, and replay those calls on any samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from flexround.attach import Layer
from flexround.sites import Site


@dataclass(frozen=True)
class Block:
    """A unit of reconstruction: a module and the layers in it, in execution order.

    Attributes:
        activation: the activation function that follows the module and belongs to its output.
        sites: the activations that are quantized in it and at its output.
    """

    name: str
    module: nn.Module
    layers: Sequence[Layer]
    activation: nn.Module | None = None
    sites: Sequence[Site] = ()

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return next(self.module.parameters()).dtype


@torch.no_grad()
def takers(
    modules: Iterable[nn.Module], run: Callable[[], object]
) -> tuple[list[nn.Module], list[list[nn.Module]]]:
    """Return modules in the order that run calls them, and those that take one tensor together."""
    taken: list[tuple[nn.Module, Tensor]] = []  # the tensors, kept so that none is reused
    handles = [
        module.register_forward_pre_hook(lambda m, args: taken.append((m, args[0])))
        for module in modules
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    together: dict[int, list[nn.Module]] = {}
    for module, tensor in taken:
        together.setdefault(id(tensor), []).append(module)
    return list(dict.fromkeys(module for module, _ in taken)), list(together.values())


class _Reached(Exception):
    """Ends a forward pass once the watched module is called."""


@dataclass(frozen=True)
class PerSample:
    """A recorded argument with one entry a calibration sample, [samples, ...]."""

    values: Tensor


@dataclass(frozen=True)
class Calls:
    """All calls of one module over the calibration set.

    Attributes:
        inputs: the first argument, [samples, ...].
        args: the other positional arguments; PerSample where they differ from sample to sample.
        kwargs: the keyword arguments, likewise.
    """

    inputs: Tensor
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def with_inputs(self, inputs: Tensor) -> Calls:
        """Return the same calls on other inputs [samples, ...]."""
        return replace(self, inputs=inputs)

    def to_float(self) -> Calls:
        """Return the calls with all half-precision tensors in float32."""

        def widen(leaf: Any) -> Any:
            if isinstance(leaf, PerSample):
                return PerSample(widen(leaf.values))
            half = isinstance(leaf, Tensor) and leaf.dtype in (torch.float16, torch.bfloat16)
            return leaf.float() if half else leaf

        args, kwargs = tree_map(widen, (self.args, self.kwargs))
        return Calls(widen(self.inputs), args, kwargs)

    def run(
        self,
        module: nn.Module,
        indices: Tensor,
        device: torch.device,
        inputs: Tensor | None = None,
    ) -> Tensor:
        """Return module's output on the samples at indices [batch], on device.

        inputs [batch, ...] stand in for the first argument where they are given.
        """

        def pick(leaf: Any) -> Any:
            if isinstance(leaf, PerSample):
                return leaf.values[indices].to(device)
            return leaf.to(device) if isinstance(leaf, Tensor) else leaf

        args, kwargs = tree_map(pick, (self.args, self.kwargs or {}))
        if inputs is None:
            inputs = self.inputs[indices].to(device)
        out = module(inputs, *args, **kwargs)
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result

    @torch.no_grad()
    def run_all(self, module: nn.Module, batch_size: int, device: torch.device) -> Tensor:
        """Return module's outputs on every sample, [samples, ...], where the inputs are stored."""
        indices = torch.arange(len(self))
        outputs = [self.run(module, part, device) for part in indices.split(batch_size)]
        return torch.cat([out.to(self.inputs.device) for out in outputs])


@torch.no_grad()
def capture(module: nn.Module, forward: Callable[[Any], Any], batches: Sequence[Any]) -> Calls:
    """Return the calls that module receives while forward runs on each batch.

    Each forward pass stops where module is called. Tensor arguments that are the same in every
    call and carry no batch axis of their own stay as they are.

    Raises:
        ValueError: when forward never calls module, or an argument's shape varies between batches.
    """
    recorded: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorded.append((args, kwargs))
        raise _Reached

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        for batch in batches:
            before = len(recorded)
            with contextlib.suppress(_Reached):
                forward(batch)
            if len(recorded) == before:
                raise ValueError("the model's forward pass does not call the block to capture")
    finally:
        handle.remove()
    return _merge(recorded)


def _merge(recorded: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> Calls:
    firsts = [args[0] for args, _ in recorded]
    sizes = [len(first) for first in firsts]

    def join(*leaves: Any) -> Any:
        if len({isinstance(leaf, Tensor) for leaf in leaves}) > 1:
            raise ValueError(
                "an argument is a tensor in some calibration batches and missing in others, as a "
                "mask of ones is; give the calibration samples as one batch"
            )
        if not isinstance(leaves[0], Tensor):
            return leaves[0]
        batched = all(
            leaf.dim() > 0 and len(leaf) == size for leaf, size in zip(leaves, sizes, strict=True)
        )
        same = all(torch.equal(leaf, leaves[0]) for leaf in leaves)
        if same and (not batched or len(leaves[0]) == 1):
            return leaves[0]
        if not batched:
            raise ValueError(f"an argument of shape {list(leaves[0].shape)} has no batch axis")
        return PerSample(torch.cat(leaves))

    rest = [args[1:] for args, _ in recorded]
    kwargs = [kw for _, kw in recorded]
    args, keywords = tree_map(join, (rest[0], kwargs[0]), *zip(rest[1:], kwargs[1:], strict=True))
    return Calls(torch.cat(firsts), args, keywords)
