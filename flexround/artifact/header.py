"""Header of an artifact: the JSON in its safetensors metadata, read without torch.

The layout of a safetensors file (https://github.com/huggingface/safetensors): 8 bytes with the
length of a JSON object, that object, the tensors.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

FORMAT = 1
LEVELS_FORMAT = 2  # of files with a table of levels, which a reader of format 1 would not see
FILE = "flexround.safetensors"
KEY, DIGEST = "flexround", "sha256"
# Bytes of a tensor's elements by what safetensors calls their type.
SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
MOST_BYTES = 100_000_000  # of a header: safetensors' own bound
DEEPEST, DIMENSIONS, LONGEST = 16, 8, 1000
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")


def locate(path: str | Path) -> Path:
    """Return the file of the artifact at path, which names it or its folder.

    Raises:
        ValueError: when there is none, or it is a pickle.
    """
    path = Path(path).expanduser()
    if path.suffix in PICKLES:
        raise ValueError(f"{path}: a pickle runs code when loaded and never is; give an artifact")
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path}: no artifact, which is a folder with {FILE}; save=true writes it")
    return file


def read_header(path: Path) -> tuple[dict[str, Any], str]:
    """Return what the artifact's file says of itself, and the digest of all that it holds.

    Everything is held to what the file has room for before anything else is read.

    Raises:
        ValueError: when it is damaged, no artifact, or of another version of the format.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            rest = path.stat().st_size - 8 - length
            if length < 2 or rest < 0:
                raise ValueError("its header is longer than the file")
            if length > MOST_BYTES:
                raise ValueError(f"its header is longer than {MOST_BYTES} bytes")
            found = parsed(file.read(length))
            metadata = found.pop("__metadata__", {})
            if not all(isinstance(text, str) for text in metadata.values()):
                raise ValueError("its metadata are no texts")
            for name, entry in found.items():
                _check_tensor(name, entry, rest)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"artifact {path} is damaged or truncated ({error})") from error
    if KEY not in metadata:
        raise ValueError(f"{path}: a safetensors file, but no artifact; save=true writes those")
    try:
        header = parsed(metadata[KEY])
        version = header["format"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"artifact {path} has a damaged header ({error})") from error
    if type(version) is not int or version not in (FORMAT, LEVELS_FORMAT):
        raise ValueError(
            f"artifact {path} is of format {str(version)[:40]}, this version reads {FORMAT} "
            f"and {LEVELS_FORMAT}"
        )
    return header, metadata.get(DIGEST, "")


def parsed(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object that text is, nested no deeper than a header ever is.

    Raises:
        ValueError: when it is none, or deeper.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from error
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        inner = (e.values() if isinstance(e, dict) else e for e in level)
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
        if not level:
            return found
    raise ValueError(f"it is nested deeper than {DEEPEST} levels")


def check_name(name: Any) -> None:
    """Check that name is what a part of a network may be called.

    Raises:
        ValueError: when it is no text, or would not fit on a line.
    """
    if not isinstance(name, str) or not name.isprintable() or len(name) > LONGEST:
        raise ValueError(f"{str(name)[:40]!r} is no name of a tensor")


def whole_numbers(values: Any) -> list[int]:
    """Return values, a list of whole numbers of at least 0 that a file may have the room for.

    Raises:
        ValueError: when it is none.
    """
    is_short = isinstance(values, list) and len(values) <= DIMENSIONS
    if is_short and all(type(value) is int and 0 <= value < 2**48 for value in values):
        return list(values)
    raise ValueError(f"{str(values)[:40]} is no list of sizes")


def _check_tensor(name: str, entry: Any, room: int) -> None:
    """Check the entry of a tensor in a file whose tensors take room bytes in all.

    Raises:
        ValueError: when it does not lie in the file, or takes another number of bytes there.
    """
    check_name(name)
    size = SIZES.get(str(entry.get("dtype")))
    if size is None:
        raise ValueError(f"tensor {name} is of a type that no artifact holds")
    needed = size * math.prod(whole_numbers(entry.get("shape")))
    begin, end = [*whole_numbers(entry.get("data_offsets")), -1, -1][:2]
    if not begin <= end <= room or end - begin != needed:
        raise ValueError(f"tensor {name} of {needed} bytes is not where its header says")
