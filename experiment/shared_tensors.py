"""Tensors that runs find in the cache where another run has left them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from experiment.shared_cache import Cache, key_of
from flexround.calibration.activation_cache import FullPrecisionOutputs


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


def _is_outputs(data: bytes) -> bool:
    """Return whether data is what `SharedOutputs` keeps."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return not data or load(data).keys() == {"outputs"}
    except SafetensorError:
        return False
