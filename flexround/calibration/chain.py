"""Recording of a chain of blocks: the inputs of the first, and the other arguments of each.

Blocks of one network may be called differently: layers with a sliding window take another mask than
those without, local and global layers other rotary embeddings (Gemma 3, arXiv 2503.19786, sec. 2).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path, tree_map

from flexround.calibration.activation_cache import HALF, ActivationCache
from flexround.calibration.arguments import Arguments, merged, split_inputs
from flexround.calibration.calls import (
    RecordedCalls,
    StopForward,
    other_forward,
    stopped_forward,
)
from flexround.calibration.outputs import with_first

# What a block is called with in a pass over one batch, its inputs left out, block by block.
Pass = list[Arguments]


@torch.no_grad()
def record_chain(
    modules: Sequence[nn.Module],
    returns: Sequence[Any],
    forward: Callable[[Any], Any],
    batches: Iterable[Any],
    cache: ActivationCache | None = None,
    probe: Any = None,
) -> RecordedCalls:
    """Return the calls of the first of modules; those of the others follow it.

    No block computes anything: each hands its input on, in the form of its entry in returns, which
    is what it gave elsewhere. Arguments in half precision become float32; those that are equal are
    held once. probe is a batch of one sample, which tells an argument's batch axis from an axis
    that happens to be as long.

    Raises:
        ValueError: when forward does not call the modules one after the other, or an argument can't
            be told apart by samples.
    """
    cache = cache or ActivationCache()
    passes: list[Pass] = []
    sizes: list[int] = []
    shared: list[Tensor] = []

    def firsts() -> Iterator[Tensor]:
        for batch in batches:
            inputs, arguments = _one_pass(modules, returns, forward, batch, shared)
            passes.append(arguments)
            sizes.append(len(inputs))
            shared.clear()
            yield inputs

    inputs = cache.store(firsts())
    constant = set()
    if probe is not None:
        _, alone = _one_pass(modules, returns, forward, probe, [])
        constant = _constant(passes[0], alone, sizes[0])
    joined: dict[tuple[int, ...], Any] = {}
    own = [
        merged([arguments[i] for arguments in passes], sizes, constant, joined)
        for i in range(len(modules))
    ]
    return RecordedCalls(inputs, *own[0], cache, tuple(own[1:]))


@torch.no_grad()
def check_order(
    modules: Sequence[nn.Module],
    returns: Sequence[Any],
    forward: Callable[[Any], Any],
    batch: Any,
) -> None:
    """Check that forward calls modules in their order, each of them once.

    Raises:
        ValueError: when it does not.
    """
    _one_pass(modules, returns, forward, batch, [], stops=False)


def in_float(leaf: Any) -> Any:
    """Return leaf, a tensor of half precision as float32."""
    return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in HALF else leaf


def _one_pass(
    modules: Sequence[nn.Module],
    returns: Sequence[Any],
    forward: Callable[[Any], Any],
    batch: Any,
    shared: list[Tensor],
    stops: bool = True,
) -> tuple[Tensor, Pass]:
    """Return the first module's inputs, and what each module is called with besides.

    With stops the pass ends where the last of them is called.
    """
    found: list[Tensor] = []
    recorded: Pass = []
    end = len(modules)

    def hook(index: int) -> Callable[..., None]:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if len(recorded) != index:
                raise ValueError(
                    f"the model's {end} layers do not run one after the other, each of them once: "
                    f"call {len(recorded) + 1} is of layer {index + 1}"
                )
            inputs, arguments = split_inputs(args, kwargs)
            recorded.append(tree_map(lambda leaf: _held(leaf, shared), arguments))
            if not found:
                found.append(inputs)
            if stops and index + 1 == end:
                raise StopForward

        return record

    with contextlib.ExitStack() as stack:
        for index, module in enumerate(modules):
            handle = module.register_forward_pre_hook(hook(index), with_kwargs=True)
            stack.callback(handle.remove)
            stack.enter_context(_handing_on(module, returns[index]))
        with stopped_forward():
            forward(batch)
    if len(recorded) < end:
        raise ValueError(f"the model's forward pass calls {len(recorded)} of its {end} layers")
    return found[0], recorded


def _handing_on(module: nn.Module, returned: Any) -> contextlib.AbstractContextManager[None]:
    """Make module return its own input, among others where returned is."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        inputs, _ = split_inputs(args, kwargs)
        return with_first(returned, inputs)

    return other_forward(module, forward)


def _held(leaf: Any, shared: list[Tensor]) -> Any:
    """Return leaf, or the equal tensor that an earlier block was called with in this pass."""
    leaf = in_float(leaf)
    if not isinstance(leaf, Tensor):
        return leaf
    for other in shared:
        same = other.shape == leaf.shape and other.dtype == leaf.dtype
        if same and torch.equal(other, leaf):
            return other
    shared.append(leaf)
    return leaf


def _constant(first: Pass, alone: Pass, size: int) -> set[int]:
    """Return the ids of tensors in a pass over size samples that are as long for one sample."""
    found = set()
    lengths = [
        {path: leaf.shape[:1] for path, leaf in tree_flatten_with_path(arguments)[0] if _is(leaf)}
        for arguments in alone
    ]
    for arguments, own in zip(first, lengths, strict=True):
        for path, leaf in tree_flatten_with_path(arguments)[0]:
            if _is(leaf) and size > 1 and own.get(path) == leaf.shape[:1]:
                found.add(id(leaf))
    return found


def _is(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)
