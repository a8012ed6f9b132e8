"""What a layer gives: hidden states, alone or as the first of several."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor


def first_of(output: Any) -> Tensor:
    """Return the hidden states of what a layer gives: the first of several, or all of it."""
    return cast(Tensor, output[0] if isinstance(output, tuple | list) else output)


def with_first(output: Any, first: Any) -> Any:
    """Return what a layer gives with first in the place of its hidden states."""
    return (first, *output[1:]) if isinstance(output, tuple | list) else first
