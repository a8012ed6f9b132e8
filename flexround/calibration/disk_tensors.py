"""Tensors that lie in a file instead of in memory: mapped, so that the system reads what is used.

A file has no name from the start (unlinked, as tempfile makes it): it is gone with the last tensor
on it, and with the process however that ends.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor


class DiskTensors:
    """Writes tensors to files in folder, which is made where it is missing."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def check_writable(self) -> None:
        """Check that the folder can be written.

        Raises:
            ValueError: when it can't.
        """
        self._open().close()

    def write(self, parts: Iterable[Tensor]) -> Tensor:
        """Return parts, joined along their first axis, as one tensor on the CPU that is a file.

        Raises:
            ValueError: when the folder can't be written or has no room.
        """
        length, last = 0, None
        with self._open() as file:
            for part in parts:
                last = part.detach().cpu().contiguous()
                self._write_one(file, last)
                length += len(last)
            assert last is not None, "there is something to write"
            held = mmap.mmap(file.fileno(), 0)
        return torch.frombuffer(held, dtype=last.dtype).view(length, *last.shape[1:])

    def _open(self) -> IO[bytes]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryFile(
                dir=self._folder, prefix=".stream-", suffix=".part", buffering=0
            )
        except OSError as error:
            raise self._refusal(error) from error

    def _write_one(self, file: IO[bytes], tensor: Tensor) -> None:
        # Written rather than mapped and filled: a full disk is then an error and no SIGBUS.
        flat: Any = tensor.view(-1).view(torch.uint8).numpy()
        left = memoryview(flat)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> ValueError:
        return ValueError(
            f"spill_dir={self._folder}: {error.strerror}; give a folder with rights and room, or "
            "raise stream_gib"
        )
