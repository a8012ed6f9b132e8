"""Trace of a network: the order of its modules, as one forward pass shows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Place = tuple[int, int]  # a tensor and its version: one that is changed in place is another


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors in what an operation takes or gives."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Call:
    """One call of a module: what went in first, and what came out.

    A tensor's version tells whether it was changed in place since, as torchvision's residual add
    changes the output of a block's last convolution.

    Attributes:
        alone: whether the module was given nothing besides its first tensor.
    """

    module: nn.Module
    inputs: Tensor
    output: Tensor
    input_version: int
    output_version: int
    alone: bool = True


class Watched(TorchDispatchMode):
    """A pass whose operations are seen one by one."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Tensor] = []  # so that none's place is another's

    def place(self, tensor: Tensor) -> Place:
        """Return what tells tensor, as it is, from all others of the pass."""
        self._held.append(tensor)
        return id(tensor), tensor._version


class _Readers(Watched):
    """A pass in which is noted which modules' operations read each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[nn.Module] = []  # the modules that are being called
        self.found: dict[Place, set[nn.Module | None]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        reader = self.open[-1] if self.open else None
        for tensor in tensors_in((args, kwargs or {})):
            self.found.setdefault(self.place(tensor), set()).add(reader)
        return func(*args, **(kwargs or {}))


class Trace:
    """What one forward pass showed: every module call in the order they began.

    Attributes:
        runs: how often each module was called, also those that take or give no single tensor.
        output: what the network gave.
    """

    def __init__(
        self, calls: list[Call], runs: Counter[nn.Module], output: Tensor, readers: _Readers
    ) -> None:
        self.calls, self.runs, self.output = calls, runs, output
        self.modules = list(dict.fromkeys(call.module for call in calls))
        self.first = {call.module: call for call in reversed(calls)}
        self._readers = readers

    def consumer(self, module: nn.Module, kinds: tuple[type, ...]) -> nn.Module | None:
        """Return the module of one of the kinds that takes module's output and alone reads it."""
        call = self.reader(self.first[module], kinds)
        return None if call is None else call.module

    def reader(self, source: Call, kinds: tuple[type, ...]) -> Call | None:
        """Return the call of a module of the kinds that takes what source gave, alone."""
        if source.output is self.output:
            return None
        for call in self.calls:
            same = call.inputs is source.output and call.input_version == source.output_version
            if same and isinstance(call.module, kinds):
                readers = self._readers.found[id(source.output), source.output_version]
                return call if readers <= set(call.module.modules()) else None
        return None


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return model's output [batch, ...] on images [batch, 3, height, width], which stay so.

    Raises:
        ValueError: when its forward pass fails on them, or gives no tensor with a batch axis.
    """
    name, size = type(model).__name__, " x ".join(map(str, images.shape[2:]))
    what = f"images of {size} pixels" if images.dim() == 4 else f"inputs {list(images.shape)}"
    try:
        output = model(images.clone())  # some normalise what they are given in place
    except Exception as error:  # a network may raise anything, about an image's size above all
        raise ValueError(f"{name}'s forward pass fails on {what}: {first_line(error)}") from error
    if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != len(images):
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"{name} answers {len(images)} samples with {found}; only networks that give a row of "
            "numbers a sample, as classifiers do, can be quantized"
        )
    return output


def same_output(found: Tensor, wanted: Tensor, near: float = 1e-4) -> bool:
    """Return whether two tensors are the same but for near, a share of each value.

    Of small values it is a tenth of that share of the largest.
    """
    if found.shape != wanted.shape:
        return False
    least = near / 10 * max(1e-30, wanted.abs().max().item())
    return torch.allclose(found, wanted, rtol=near, atol=least, equal_nan=True)


def told_apart(example: Tensor) -> Tensor:
    """Return example [samples, ...] as two samples that differ.

    A block that needs a sample's earlier values can't be told from one that does not where another
    sample has the same.
    """
    first, other = example[:1], example[1:2]
    if other.shape != first.shape or torch.equal(first, other):
        other = first.flip(-1)
        if first.is_floating_point():
            draws = torch.Generator().manual_seed(0)
            other = other + torch.rand(first.shape, generator=draws).to(first)
    return torch.cat([first, other])


def first_line(error: Exception) -> str:
    """Return an error's kind and the first line of what it says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}{f': {text[0]}' if text else ''}"


@torch.no_grad()
def trace(model: nn.Module, example: Tensor) -> Trace:
    """Run model on example and return all calls of modules that map a tensor to a tensor.

    Raises:
        ValueError: when the forward pass fails.
    """
    calls: list[Call | None] = []
    runs: Counter[nn.Module] = Counter()
    open_calls: list[tuple[int, int]] = []  # place in calls, version of the input
    readers = _Readers()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        readers.open.append(module)
        version = args[0]._version if args and isinstance(args[0], Tensor) else -1
        open_calls.append((len(calls), version))
        calls.append(None)
        runs[module] += 1

    def after(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        readers.open.pop()
        index, version = open_calls.pop()
        if version >= 0 and isinstance(output, Tensor):
            others = [*args[1:], *kwargs.values()]
            alone = all(other is None or other is False for other in others)
            calls[index] = Call(module, args[0], output, version, output._version, alone)

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        with readers:
            output = logits_of(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return Trace([call for call in calls if call is not None], runs, output, readers)
