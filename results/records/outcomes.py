"""Outcomes of the evaluation samples of a run, as the bytes of a small file beside its record.

Right or wrong takes a bit: 50,000 images are 6.25 kB. Everything else is kept in float32.
"""

from __future__ import annotations

import io
import logging
import math
import struct
import tokenize
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import ArrayLike

from flexround.utils.file_errors import read_bytes

log = logging.getLogger(__name__)

Outcomes = dict[str, np.ndarray[Any, Any]]

STARTED = "started"  # of the record that they belong to
# What zipfile and NumPy raise for a file that is none, besides ValueError.
DAMAGE = (
    zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, RuntimeError, SyntaxError,
    TypeError, OverflowError, struct.error, tokenize.TokenError,
)  # fmt: skip
COUNT = ".count"  # what packed bits are short of: how many there are


def pack(outcomes: Mapping[str, ArrayLike], started: str) -> bytes:
    """Return outcomes [samples] by metric as the bytes of an .npz, with their record's start."""
    held: dict[str, Any] = {STARTED: np.array(started)}
    for name, values in outcomes.items():
        array = np.asarray(values)
        if array.dtype == bool:
            held[name], held[name + COUNT] = np.packbits(array), np.array(len(array), np.int64)
        else:
            held[name] = array.astype(np.float32)
    file = io.BytesIO()
    np.savez(file, **held)
    return file.getvalue()


def read(path: Path, started: str) -> Outcomes:
    """Return the outcomes in the file at path, none where there are none that can be read."""
    try:
        return unpack(read_bytes(path), started)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("outcomes %s passed over: %s", path, error)
        return {}


def unpack(data: bytes, started: str) -> Outcomes:
    """Return what `pack` was given.

    Raises:
        ValueError: when data is none of pack's or belongs to another attempt at the run.
    """
    try:
        held = _arrays(data)
        owner = str(held.pop(STARTED)[()])
    except DAMAGE as error:
        raise ValueError(f"it is damaged ({_line(str(error))})") from error
    if owner != started:
        raise ValueError(f"it is of the attempt of {_line(owner)}, not of {started}")
    counts = {name: held.pop(name) for name in list(held) if name.endswith(COUNT)}
    found = {}
    for name, values in held.items():
        count = counts.pop(name + COUNT, None)
        if count is None:
            good = values.dtype == np.float32 and values.ndim == 1
        else:
            good = values.dtype == np.uint8 and values.ndim == 1 and count.dtype == np.int64
            good = good and count.ndim == 0 and -(-int(count) // 8) == len(values)
        if not good:
            raise ValueError(f"it is damaged ({ascii(name)[:40]} is no row of outcomes)")
        bits = values if count is None else np.unpackbits(values, count=int(count)).astype(bool)
        found[name] = bits
    if counts:
        raise ValueError("it is damaged (counts of outcomes that are not there)")
    return found


def _arrays(data: bytes) -> Outcomes:
    """Return the arrays of an .npz by name; none takes more memory than data.

    Raises:
        ValueError: when it holds what `pack` does not write, or less than it says.
        one of DAMAGE: as zipfile and NumPy do.
    """
    held = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        stored = all(m.compress_type == zipfile.ZIP_STORED for m in archive.infolist())
        if not stored or sum(m.file_size for m in archive.infolist()) > len(data):
            raise ValueError("it is damaged (it says that it holds more than it does)")
        for member in archive.infolist():
            file = io.BytesIO(archive.read(member))
            if npy.read_magic(file) != (1, 0):
                raise ValueError("it is damaged (arrays of another format)")
            shape, fortran, dtype = npy.read_array_header_1_0(file)
            rest = file.read()
            if fortran or dtype.hasobject or dtype.itemsize == 0 or dtype.names:
                raise ValueError("it is damaged (arrays of another kind)")
            if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(rest):
                raise ValueError("it is damaged (arrays of another size than they say)")
            held[member.filename.removesuffix(".npy")] = np.frombuffer(rest, dtype).reshape(shape)
    return held


def _line(text: str) -> str:
    return ascii(text)[1:-1][:80]
