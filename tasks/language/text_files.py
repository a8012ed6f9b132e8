"""Text files of a task's data: read as UTF-8, or refused in one line."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path


def read_text(path: Path, encoding: str = "utf-8", newline: str | None = None) -> str:
    """Return what path holds, which lines end as newline says (see `open`).

    Raises:
        ValueError: when it is no UTF-8; names the file and the line.
    """
    try:
        with path.open(encoding=encoding, newline=newline) as file:
            return file.read()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} is not UTF-8 text (line {line}); convert or remove it") from error


def gzipped_texts(path: Path) -> list[str]:
    """Return the text of each line of a shard of C4.

    Raises:
        ValueError: when it is something else; names the file and the line.
    """
    found: list[str] = []
    try:
        with gzip.open(path, "rb") as file:
            for line in file:
                found.append(_document(line))
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise ValueError(
            f"{path}, line {len(found) + 1}: damaged or no shard of allenai/c4 ({error})"
        ) from error
    return found


def _document(line: bytes) -> str:
    """Return the text of a line.

    Raises:
        ValueError: when it is no JSON, or has none.
    """
    found = json.loads(line)
    text = found.get("text") if isinstance(found, dict) else None
    if not isinstance(text, str):
        raise ValueError("no text in it")
    return text
