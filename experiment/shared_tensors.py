"""Tensors that runs find in the cache where another run has left them."""

from __future__ import annotations

from collections.abc import Callable, Set

from torch import Tensor

from experiment.shared_cache import Cache, key_of
from flexround.calibration.activation_cache import FullPrecisionOutputs
from flexround.transforms.base import Searches


class SharedOutputs(FullPrecisionOutputs):
    """Keeps outputs in the cache as long as those of all blocks take half of it at most."""

    def __init__(self, cache: Cache, key: str, blocks: int) -> None:
        self._cache, self._key = cache, key
        self._most = cache.limit // (2 * blocks)
        self._too_large = False

    def get(self, block: int, compute: Callable[[], Tensor]) -> Tensor:
        """Return the outputs [samples, ...] of the block at that place, on the CPU when found."""
        from safetensors.torch import load, save

        if self._too_large:
            return compute()
        made: list[Tensor] = []

        def make() -> bytes:
            made.append(compute())
            if made[0].nbytes > self._most:
                self._too_large = True
                return b""  # an empty entry says the same to the others
            return save({"outputs": made[0].contiguous().cpu()})

        held = self._cache.get(key_of(self._key, block), make, _is_outputs)
        if made:
            return made[0]
        if not held:
            self._too_large = True
            return compute()
        return load(held)["outputs"]


class SharedSearches(Searches):
    """Keeps what a transform's search finds of each block, while that of all takes half the cache.

    Attributes:
        reused: blocks of which another run's search was found.
    """

    def __init__(self, cache: Cache, key: str, blocks: int) -> None:
        self._cache, self._key = cache, key
        self._most = cache.limit // (2 * blocks)
        self.reused = 0

    def get(
        self, block: str, names: Set[str], search: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Return what search finds of the block, on the CPU where it was found before."""
        from safetensors.torch import load, save

        made: list[dict[str, Tensor]] = []

        def make() -> bytes:
            made.append(search())
            if sum(tensor.nbytes for tensor in made[0].values()) > self._most:
                return b""  # so that the next run searches, without waiting for another
            return save({name: held.contiguous().cpu() for name, held in made[0].items()})

        # What one cache has no room for another may have.
        key = key_of(self._key, block, self._most)
        held = self._cache.get(key, make, lambda data: not data or _is_tensors(data, names))
        if made:
            return made[0]
        if not held:
            return search()
        self.reused += 1
        return load(held)


def _is_outputs(data: bytes) -> bool:
    """Return whether data is what `SharedOutputs` keeps."""
    return not data or _is_tensors(data, {"outputs"})


def _is_tensors(data: bytes, names: Set[str]) -> bool:
    """Return whether data holds tensors of these names."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data).keys() == names
    except SafetensorError:
        return False
