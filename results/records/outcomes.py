"""Outcomes of the evaluation samples of a run, as the bytes of a small file beside its record.

Right or wrong takes a bit: 50,000 images are 6.25 kB. Everything else is kept in float32.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Outcomes = dict[str, np.ndarray[Any, Any]]

STARTED = "started"  # of the record that they belong to
COUNT = ".count"  # what packed bits are short of: how many there are


def pack(outcomes: Mapping[str, ArrayLike], started: str) -> bytes:
    """Return outcomes [samples] by metric as the bytes of an .npz, with their record's start."""
    held: dict[str, Any] = {STARTED: np.array(started)}
    for name, values in outcomes.items():
        array = np.asarray(values)
        if array.dtype == bool:
            held[name], held[name + COUNT] = np.packbits(array), np.array(len(array))
        else:
            held[name] = array.astype(np.float32)
    file = io.BytesIO()
    np.savez(file, **held)
    return file.getvalue()


def unpack(data: bytes, started: str) -> Outcomes:
    """Return what `pack` was given.

    Raises:
        ValueError: when data is none of pack's or belongs to another attempt at the run.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            held: Outcomes = dict(file)
        owner = str(held.pop(STARTED))
    except (zipfile.BadZipFile, EOFError, KeyError) as error:
        raise ValueError(f"it is damaged ({error})") from error
    if owner != started:
        raise ValueError(f"it is of the attempt of {owner}, not of {started}")
    counts = {name: int(held.pop(name)) for name in list(held) if name.endswith(COUNT)}
    return {
        name: np.unpackbits(values, count=counts[name + COUNT]).astype(bool)
        if name + COUNT in counts
        else values
        for name, values in held.items()
    }
