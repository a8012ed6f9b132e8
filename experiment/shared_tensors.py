"""Tensors that runs find in the cache where another run has left them."""

from __future__ import annotations

from collections.abc import Callable, Set

from torch import Tensor

from experiment.shared_cache import Cache, key_of
from flexround.calibration.activation_cache import FullPrecisionOutputs
from flexround.transforms.base import Searches

Tensors = dict[str, Tensor]
Compute = Callable[[], Tensors]


class _Shared:
    """Keeps tensors of each block in the cache as long as those of all take half of it at most."""

    def __init__(self, cache: Cache, key: str, blocks: int) -> None:
        self._cache = cache
        self._most = cache.limit // (2 * blocks)
        self._key = key_of(key, self._most)  # what one has no room for another may have
        self._too_large = False

    def _find(self, block: int | str, names: Set[str], compute: Compute) -> tuple[Tensors, bool]:
        """Return the block's tensors of these names, and whether they were found, on the CPU."""
        from safetensors.torch import load, save

        if self._too_large:
            return compute(), False
        made: list[Tensors] = []

        def make() -> bytes:
            made.append(compute())
            if sum(tensor.nbytes for tensor in made[0].values()) > self._most:
                self._too_large = True
                return b""  # an empty entry says the same to the others
            return save({name: held.contiguous().cpu() for name, held in made[0].items()})

        key = key_of(self._key, block)
        held = self._cache.get(key, make, lambda data: is_kept(data, names))
        if made:
            return made[0], False
        if not held:
            self._too_large = True
            return compute(), False
        return load(held), True


class SharedOutputs(_Shared, FullPrecisionOutputs):
    """Finds the full-precision outputs of blocks where another run has left them."""

    def get(self, block: int, compute: Callable[[], Tensor]) -> Tensor:
        """Return the outputs [samples, ...] of the block at that place, on the CPU when found."""
        found, _ = self._find(block, {"outputs"}, lambda: {"outputs": compute()})
        return found["outputs"]


class SharedSearches(_Shared, Searches):
    """Finds what a transform's search has found of blocks in another run.

    Attributes:
        reused: blocks of which it was.
    """

    reused = 0

    def get(self, block: str, names: Set[str], search: Compute) -> Tensors:
        """Return what search finds of the block, on the CPU where it was found before."""
        found, reused = self._find(block, names, search)
        self.reused += reused
        return found


def is_kept(data: bytes, names: Set[str]) -> bool:
    """Return whether data is what is kept of tensors of these names: they, or that they are not."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return not data or load(data).keys() == names
    except SafetensorError:
        return False
