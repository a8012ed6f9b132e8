"""Calibration data as a caller has them: a tensor, tensors or dicts, or a DataLoader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexround.api.presets import Kind
from flexround.calibration.finite import first_not_finite

TARGETS = ("labels", "label", "label_ids")  # which a network would compute a loss of
IDS = "input_ids"
HOW = "give a tensor [samples, ...], a list of tensors or dicts, or a DataLoader"


def batches_of(calibration: Any, model: nn.Module) -> tuple[list[Any], Kind]:
    """Return calibration as batches that model takes, and the kind of network that takes such.

    A batch is a tensor [samples, ...], or a mapping with input_ids [samples, tokens]; of a pair, as
    a DataLoader with labels gives it, the first. A tensor of whole numbers for a network of
    transformers is its input_ids.

    Raises:
        ValueError: when there is none, or a batch is none of these, or like no other.
    """
    batches = [_batch(item, number) for number, item in enumerate(_items(calibration), 1)]
    if not batches:
        raise ValueError(f"calibration is empty; {HOW}")
    transformer = hasattr(model, "config")
    if transformer:
        batches = [
            {IDS: batch} if isinstance(batch, Tensor) and not batch.is_floating_point() else batch
            for batch in batches
        ]
    shapes = [_shape(batch) for batch in batches]
    for number, shape in enumerate(shapes[1:], 2):
        if shape != shapes[0]:
            raise ValueError(
                f"calibration batch {number} is {shape}, the first one {shapes[0]}, the first axis "
                "aside; give samples of one size"
            )
    if isinstance(batches[0], Tensor):
        return batches, "vision"
    name = type(model).__name__
    if not transformer:
        raise ValueError(
            f"calibration holds dicts, which transformers' networks take, and {name} has no "
            "config as theirs have; give tensors"
        )
    if IDS not in batches[0]:
        raise ValueError(
            f"calibration holds dicts of {', '.join(batches[0])} without {IDS}: of transformers' "
            "networks only language models and encoders of text can be followed"
        )
    return batches, "language"


def count(batches: Iterable[Any]) -> int:
    """Return how many samples there are."""
    return sum(len(b if isinstance(b, Tensor) else b[IDS]) for b in batches)


def first(batches: list[Any], samples: int = 2) -> Any:
    """Return a batch of the first samples; of fewer, the last one again."""
    indices = torch.arange(samples)

    def pick(parts: list[Tensor]) -> Tensor:
        some = torch.cat(parts[:samples])
        return some[indices.clamp(max=len(some) - 1)]

    if isinstance(batches[0], Tensor):
        return pick(batches)
    return {name: pick([batch[name] for batch in batches]) for name in batches[0]}


def _items(calibration: Any) -> Iterable[Any]:
    if isinstance(calibration, Tensor | Mapping):
        return [calibration]
    if isinstance(calibration, str | bytes) or not isinstance(calibration, Iterable):
        raise ValueError(f"calibration is a {type(calibration).__name__}; {HOW}")
    return calibration


def _batch(item: Any, number: int) -> Tensor | dict[str, Tensor]:
    """Return one batch, without its labels.

    Raises:
        ValueError: when it is no batch.
    """
    if isinstance(item, tuple | list) and item:
        _check_pair(item, number)
        item = item[0]  # of (inputs, labels)
    values = {"": item}
    if isinstance(item, Mapping):
        values = {str(name): value for name, value in item.items() if name not in TARGETS}
    for name, value in values.items():
        what = f"calibration batch {number}" + (f": {name}" if name else "")
        if not isinstance(value, Tensor):
            kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
            raise ValueError(f"{what} is a {kind}, no tensor; {HOW}")
        if not value.dim() or not len(value):
            raise ValueError(f"{what} is {list(value.shape)} and holds no sample; {HOW}")
        if value.dim() == 1 and not name:
            raise ValueError(
                f"{what} is {list(value.shape)}, a single axis, which would be that of samples; "
                "put single samples together with torch.stack"
            )
        if (sample := first_not_finite(value)) is not None:
            raise ValueError(f"{what}: sample {sample} holds values that are not finite")
    if not values:
        raise ValueError(f"calibration batch {number} is an empty dict; {HOW}")
    return values if isinstance(item, Mapping) else item


def _check_pair(item: Sequence[Any], number: int) -> None:
    """Check that besides inputs there are labels alone, and no attention mask.

    Raises:
        ValueError: when there is more.
    """
    tokens, *rest = item
    mask = rest and all(
        isinstance(part, Tensor) and part.dim() == 2 and not part.is_floating_point()
        for part in (tokens, rest[0])
    )  # labels have a number a sample
    if len(rest) > 1 or (mask and tokens.shape == rest[0].shape):
        raise ValueError(
            f"calibration batch {number} is {len(item)} tensors; of a pair (inputs, labels) the "
            "labels are left aside, and what else a network takes is given as a dict: "
            "{'input_ids': ..., 'attention_mask': ...}"
        )


def _shape(batch: Tensor | Mapping[str, Tensor]) -> Any:
    """Return what batches share: the size of a sample, by name where there are several tensors."""
    if isinstance(batch, Tensor):
        return list(batch.shape[1:])
    return {name: list(value.shape[1:]) for name, value in batch.items()}
