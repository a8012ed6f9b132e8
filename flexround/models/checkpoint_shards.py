"""A checkpoint's safetensors files, read tensor by tensor (huggingface.co/docs/safetensors).

One file model.safetensors, or several that model.safetensors.index.json names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Shards:
    """The tensors in a folder's files by name.

    Attributes:
        dtype: the type of the first that is a floating-point one.
        prefix: what the architecture puts before the names of its bare form, as GPT-2 transformer;
            files have names with it or without.
    """

    prefix = ""

    def __init__(self, folder: str | Path) -> None:
        """Read what each file holds.

        Raises:
            ValueError: when a file is missing or damaged, or lacks what the index says; names it.
        """
        self._folder = Path(folder)
        index = self._folder / INDEX
        promised: dict[str, str] = {}
        if index.is_file():
            promised = json.loads(index.read_text())["weight_map"]
        elif not (self._folder / WHOLE).is_file():
            raise ValueError(
                f"{folder} has neither {WHOLE} nor {INDEX}, from which offload=true reads; "
                "save the model as safetensors, or give offload=false"
            )
        self._files: dict[str, str] = {}
        for name in sorted(set(promised.values())) or [WHOLE]:
            if not (self._folder / name).is_file():
                raise ValueError(f"{self._folder / name} is missing: {INDEX} names it")
            with _open(self._folder / name) as file:
                self._files |= dict.fromkeys(file.keys(), name)
        for tensor, name in promised.items():
            if self._files.get(tensor) != name:
                raise ValueError(f"{self._folder / name} has no tensor {tensor}: {INDEX} names it")
        self.dtype = self._first_float()

    def stored(self, name: str) -> str | None:
        """Return what the tensor that a model calls name is called in the files, None without."""
        prefix = f"{self.prefix}."
        found = (name, name.removeprefix(prefix), prefix + name)
        return next((known for known in found if known in self._files), None)

    def check_tensors(self, wanted: dict[str, Tensor]) -> None:
        """Check that the files hold tensors of the names and shapes that are wanted.

        Raises:
            ValueError: names the first that is missing or of another shape.
        """
        missing = [name for name in wanted if self.stored(name) is None]
        if missing:
            raise ValueError(
                f"{self._folder} has no tensor {missing[0]} ({len(missing)} of {len(wanted)} are "
                "missing): it is no checkpoint of this architecture"
            )
        by_file = self._by_file(wanted)
        for name, tensors in by_file.items():
            with _open(self._folder / name) as file:
                for own, stored in tensors.items():
                    shape = list(file.get_slice(stored).get_shape())
                    if shape != list(wanted[own].shape):
                        raise ValueError(
                            f"{self._folder / name}: {stored} is {shape} there and "
                            f"{list(wanted[own].shape)} in the model"
                        )

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the tensors that the model calls names; they lie in the files until copied.

        Raises:
            ValueError: when a file can't be read.
        """
        found: dict[str, Tensor] = {}
        for name, tensors in self._by_file(names).items():
            with _open(self._folder / name) as file:
                found |= {own: file.get_tensor(stored) for own, stored in tensors.items()}
        return found

    def _by_file(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """Return by file what the tensors are called by the model and in it."""
        files: dict[str, dict[str, str]] = {}
        for own in names:
            stored = self.stored(own)
            assert stored is not None, "check_tensors has been called"
            files.setdefault(self._files[stored], {})[own] = stored
        return files

    def _first_float(self) -> torch.dtype:
        for stored, name in self._files.items():
            with _open(self._folder / name) as file:
                dtype: torch.dtype = file.get_tensor(stored).dtype
            if dtype.is_floating_point:
                return dtype
        raise ValueError(f"{self._folder}: its files hold no weights")


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
