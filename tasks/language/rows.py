"""Rows of a task: drawn, padded to a batch; and the tokenizer that has made them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.base import Row

# What transformers writes down of where a tokenizer was found: of a local folder, with a network at
# hand, of which the records are. It decides no token.
LOCAL = {"is_local": True, "local_files_only": False}


def files_of(tokenizer: Any) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of the files that a tokenizer is saved as, in order of their names.

    They are the same wherever it was loaded from.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).iterdir()):
            data = path.read_bytes()
            yield path.name, _of_anywhere(data) if path.name == "tokenizer_config.json" else data


def _of_anywhere(data: bytes) -> bytes:
    """Return a tokenizer's configuration as it is written where the tokenizer was in a folder."""
    config = json.loads(data)
    other = {key: value for key, value in LOCAL.items() if config.get(key, value) != value}
    if not other:
        return data  # byte for byte, as its digest stands in records
    text = json.dumps(config | other, indent=2, sort_keys=True, ensure_ascii=False)
    return f"{text}\n".encode()


def pad(tokenizer: Any, rows: Sequence[Row]) -> dict[str, Tensor]:
    """Return rows as one batch [rows, longest], padded on the tokenizer's side, with its mask."""
    batch: dict[str, Tensor] = dict(tokenizer.pad(list(rows), return_tensors="pt"))
    return batch


def draw(rows: Sequence[Any], num_samples: int, seed: int) -> list[Any]:
    """Return num_samples rows in an order drawn by seed.

    Raises:
        ValueError: when there are fewer.
    """
    if num_samples > len(rows):
        raise ValueError(
            f"num_samples={num_samples}: the train split has {len(rows)}; lower num_samples"
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return [rows[i] for i in order[:num_samples].tolist()]
