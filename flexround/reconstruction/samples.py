"""Part of a calibration set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils._pytree import tree_map

from flexround.models.base import ModelAdapter


def first_samples(adapter: ModelAdapter, calibration: Sequence[Any], count: int) -> list[Any]:
    """Return the batches of the first count samples of calibration, all where it has fewer."""

    def parts() -> Iterator[Any]:
        left = count
        for batch in calibration:
            if left > 0:
                yield tree_map(lambda values, left=left: values[:left], batch)
            left -= adapter.num_samples(batch)

    return list(parts())
