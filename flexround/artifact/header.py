"""Header of an artifact: the JSON in its safetensors metadata, read without torch.

The layout of a safetensors file (https://github.com/huggingface/safetensors): 8 bytes with the
length of a JSON object, that object, the tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FORMAT = 1
FILE = "flexround.safetensors"
KEY, DIGEST = "flexround", "sha256"
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

    Raises:
        ValueError: when it is damaged, no artifact, or of another version of the format.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= path.stat().st_size - 8:
                raise ValueError("its header is longer than the file")
            metadata = json.loads(file.read(length)).get("__metadata__", {})
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"artifact {path} is damaged or truncated ({error})") from error
    if KEY not in metadata:
        raise ValueError(f"{path}: a safetensors file, but no artifact; save=true writes those")
    try:
        header = json.loads(metadata[KEY])
        version = header["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"artifact {path} has a damaged header ({error})") from error
    if version != FORMAT:
        raise ValueError(f"artifact {path} is of format {version}, this version reads {FORMAT}")
    return header, metadata.get(DIGEST, "")
