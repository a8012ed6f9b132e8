"""Recorded calls of a block, replayed on any samples."""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from flexround.calibration.activation_cache import ActivationCache, rows
from flexround.calibration.arguments import Arguments, PerSample, merged, split_inputs
from flexround.calibration.outputs import first_of
from flexround.calibration.pace import pace_of


@torch.no_grad()
def inputs_taken(
    modules: Iterable[nn.Module], run: Callable[[], object]
) -> list[tuple[nn.Module, Tensor]]:
    """Return each call of modules in the order that run makes them, with the tensor it takes."""
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
    return taken


class StopForward(Exception):
    """Ends a forward pass once the watched module is called."""


@contextlib.contextmanager
def stopped_forward() -> Iterator[None]:
    """Run a forward pass that ends where StopForward is raised."""
    try:
        yield
    except StopForward as end:
        # What the pass had computed so far would wait for the garbage collector.
        traceback.clear_frames(end.__traceback__)


@contextlib.contextmanager
def ended_at(calls: Mapping[nn.Module, int]) -> Iterator[None]:
    """Run a forward pass that ends once each of calls' modules is called so often.

    The last of those calls is not made; hooks that are there already have seen what it takes. With
    no calls the pass runs to its end.
    """
    left = dict(calls)

    def count(module: nn.Module, _: Any) -> None:
        left[module] -= 1
        if not any(left.values()):
            raise StopForward

    with contextlib.ExitStack() as stack:
        for module in calls:
            stack.callback(module.register_forward_pre_hook(count).remove)
        stack.enter_context(stopped_forward())
        yield


@contextlib.contextmanager
def other_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Make module compute forward; one of its own, set on the instance, comes back afterwards."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def stub_forward(module: nn.Module, output: Any) -> contextlib.AbstractContextManager[None]:
    """Make module return output, whatever it is called with."""
    return other_forward(module, lambda *_, **__: output)


@dataclass(frozen=True)
class RecordedCalls:
    """All calls of one block over the calibration set.

    Attributes:
        inputs: the first argument, [samples, ...].
        args: the other positional arguments; PerSample where they differ from sample to sample.
        kwargs: the keyword arguments, likewise.
        cache: how the inputs are held, and the outputs that are made of them.
        later: the arguments of the blocks behind, in order; none where blocks take none.
    """

    inputs: Tensor
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    cache: ActivationCache = field(default_factory=ActivationCache)
    later: tuple[Arguments, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    def with_inputs(self, inputs: Tensor) -> RecordedCalls:
        """Return the calls of the block behind, which takes inputs [samples, ...]."""
        if not self.later:
            return replace(self, inputs=inputs)
        own, *later = self.later
        return RecordedCalls(inputs, *own, self.cache, tuple(later))

    def placed(self, home: torch.device) -> RecordedCalls:
        """Return the same calls, and those that follow from them, with what samples have at home.

        Nothing is spilled to disk from a GPU.
        """
        moved: dict[int, PerSample] = {}  # blocks share what they are called with

        def place(leaf: Any) -> Any:
            if not isinstance(leaf, PerSample):
                return leaf
            if id(leaf) not in moved:
                moved[id(leaf)] = PerSample(leaf.values.to(home))
            return moved[id(leaf)]

        own, *later = (
            Arguments(*tree_map(place, (held.args, dict(held.kwargs))))
            for held in (Arguments(self.args, self.kwargs), *self.later)
        )
        cache = self.cache if home.type == "cpu" else replace(self.cache, limit_gib=math.inf)
        return RecordedCalls(self.inputs.to(home), *own, cache, tuple(later))

    @property
    def per_sample_bytes(self) -> int:
        """What the arguments besides the inputs take that samples have, of all blocks."""
        every = [Arguments(self.args, self.kwargs), *self.later]
        leaves = tree_leaves([(held.args, dict(held.kwargs)) for held in every])
        held = {id(leaf): leaf.values.nbytes for leaf in leaves if isinstance(leaf, PerSample)}
        return sum(held.values())

    def arguments_on(self, device: torch.device) -> RecordedCalls:
        """Return the same calls, the arguments that all samples share on device."""

        def place(leaf: Any) -> Any:
            return leaf.to(device) if isinstance(leaf, Tensor) else leaf

        args, kwargs = tree_map(place, (self.args, dict(self.kwargs)))
        return replace(self, args=args, kwargs=kwargs)

    def replay(
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
                return rows(leaf.values, indices, device)
            return leaf.to(device) if isinstance(leaf, Tensor) else leaf

        args, kwargs = tree_map(pick, (self.args, dict(self.kwargs)))
        if inputs is None:
            inputs = rows(self.inputs, indices, device)
        try:
            out = module(inputs, *args, **kwargs)
        finally:  # a pass may be ended early, by those who have seen enough of it
            pace_of(device).step(device)
        return first_of(out)

    @torch.no_grad()
    def replay_each(
        self, module: nn.Module, batch_size: int, device: torch.device
    ) -> Iterator[Tensor]:
        """Yield module's outputs batch by batch, on device."""
        for part in torch.arange(len(self)).split(batch_size):
            yield self.replay(module, part, device)

    def replay_all(self, module: nn.Module, batch_size: int, device: torch.device) -> Tensor:
        """Return module's outputs on every sample, [samples, ...], where the inputs are stored."""
        outputs = self.replay_each(module, batch_size, device)
        return self.cache.store(out.to(self.inputs.device) for out in outputs)


@torch.no_grad()
def record_calls(
    module: nn.Module,
    forward: Callable[[Any], Any],
    batches: Iterable[Any],
    cache: ActivationCache | None = None,
    home: torch.device | None = None,
) -> RecordedCalls:
    """Return the calls that module receives while forward runs on each batch, held by cache.

    Inputs are moved home where that is given.
    Each forward pass stops where module is called. Tensor arguments that are the same in every
    call and carry no batch axis of their own stay as they are.

    Raises:
        ValueError: when forward never calls module, or an argument's shape varies between batches.
    """
    cache = cache or ActivationCache()
    recorded: list[Arguments] = []
    firsts: list[Tensor] = []  # of the pass at hand: streams decide whether it is kept
    sizes: list[int] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs, arguments = split_inputs(args, kwargs)
        firsts.append(inputs)
        recorded.append(arguments)
        raise StopForward

    def inputs_of_each() -> Iterator[Tensor]:
        for batch in batches:
            with stopped_forward():
                forward(batch)
            if not firsts:
                raise ValueError("the model's forward pass does not call the block to capture")
            first = firsts.pop()
            sizes.append(len(first))
            yield first if home is None else first.to(home)

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        inputs = cache.store(inputs_of_each())
    finally:
        handle.remove()
    return RecordedCalls(inputs, *merged(recorded, sizes), cache)
