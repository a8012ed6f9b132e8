"""Arguments of a block's calls besides its inputs, of all batches as those of one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


@dataclass(frozen=True)
class PerSample:
    """A recorded argument with one entry a calibration sample, [samples, ...]."""

    values: Tensor


class Arguments(NamedTuple):
    """What a block is called with besides its inputs.

    Attributes:
        args: positional, behind the inputs; PerSample where they differ from sample to sample.
        kwargs: by name, likewise.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = MappingProxyType({})


def split_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Arguments]:
    """Return (inputs, other arguments) of a block's call.

    Raises:
        ValueError: when the block takes its inputs by a name that is not hidden_states.
    """
    if args:
        return args[0], Arguments(args[1:], dict(kwargs))
    if "hidden_states" not in kwargs:
        raise ValueError(f"a block is called with {', '.join(kwargs) or 'nothing'}, and no inputs")
    others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
    return kwargs["hidden_states"], Arguments((), others)


def merged(
    recorded: Sequence[Arguments],
    sizes: Sequence[int],
    constant: AbstractSet[int] = frozenset(),
    joined: dict[tuple[int, ...], Any] | None = None,
) -> Arguments:
    """Return the arguments of calls on batches of the given sizes as those of one call.

    constant holds ids of tensors whose first axis is no batch axis, however long; joined what was
    made of tensors before, by their ids, so that blocks share it.

    Raises:
        ValueError: when an argument varies between batches other than by its samples.
    """
    known = {} if joined is None else joined

    def join(*leaves: Any) -> Any:
        if len({isinstance(leaf, Tensor) for leaf in leaves}) > 1:
            raise ValueError(
                "an argument is a tensor in some calibration batches and missing in others, as a "
                "mask of ones is; give the calibration samples as one batch"
            )
        if not isinstance(leaves[0], Tensor):
            return leaves[0]
        key = tuple(map(id, leaves))
        if key not in known:
            known[key] = joined_tensors(leaves)
        return known[key]

    def joined_tensors(leaves: tuple[Tensor, ...]) -> Any:
        batched = id(leaves[0]) not in constant and all(
            leaf.dim() > 0 and len(leaf) == size for leaf, size in zip(leaves, sizes, strict=True)
        )
        same = all(torch.equal(leaf, leaves[0]) for leaf in leaves)
        if same and (not batched or len(leaves[0]) == 1):
            return leaves[0]
        if not batched:
            raise ValueError(f"an argument of shape {list(leaves[0].shape)} has no batch axis")
        return PerSample(torch.cat(leaves))

    plain = [(arguments.args, dict(arguments.kwargs)) for arguments in recorded]
    return Arguments(*tree_map(join, plain[0], *plain[1:]))
