"""Records in one file, a line each: a record alone, or one with the outcomes of its samples."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from flexround.utils.file_errors import read_bytes, unreadable
from results.records.record import Record, checked

if TYPE_CHECKING:
    from results.records.outcomes import Outcomes

LINES = ".jsonl"  # what such a file's name ends with
STORED = b"PK"  # how outcomes begin that are not deflated, as they were before
MOST = 1 << 26  # bytes of a run's outcomes; those of 50,000 images are some thousand


def to_line(record: Record, outcomes: Outcomes) -> str:
    """Return record, with outcomes where there are any, as `from_line` reads them."""
    entry: dict[str, Any] = {"record": record.to_json()}
    if outcomes:
        from results.records.outcomes import pack

        deflated = zlib.compress(pack(outcomes, record.started), level=9)
        entry["outcomes"] = base64.b64encode(deflated).decode()
    return json.dumps(entry, sort_keys=True, separators=(",", ":"))


def to_lines(entries: Iterable[tuple[Record, Outcomes]]) -> bytes:
    """Return records with their outcomes as the bytes of a file, a line each, ordered by run."""
    ordered = sorted(entries, key=lambda entry: entry[0].run_id)
    return "".join(f"{to_line(record, outcomes)}\n" for record, outcomes in ordered).encode()


def from_line(line: bytes) -> tuple[Record, Outcomes]:
    """Return the record of a line and its outcomes, none where it has none.

    Raises:
        ValueError: when it holds no record, or outcomes of another one.
    """
    held = from_json(line)
    if not isinstance(held, dict) or "record" not in held:
        return checked(held, line), {}
    record, packed = checked(held["record"], line), held.get("outcomes", "")
    if not isinstance(packed, str):
        raise ValueError("outcomes that are no text")
    if not packed:
        return record, {}
    from results.records.outcomes import unpack

    return record, unpack(_inflated(base64.b64decode(packed)), record.started)


def _inflated(data: bytes) -> bytes:
    """Return what data holds, MOST bytes at most.

    Raises:
        ValueError: when it is damaged, or holds more.
    """
    if data.startswith(STORED):
        return data
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(data, MOST)
    except zlib.error as error:
        raise ValueError(f"outcomes that are damaged ({error})") from error
    if not inflater.eof or inflater.unused_data:
        raise ValueError("outcomes that are damaged, or of no run")
    return found


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that hold something, each with its number from 1.

    Raises:
        ValueError: when it is no such file, or can't be read.
    """
    if path.suffix != LINES:
        raise ValueError(f"{path}: give the folder of the records, or a {LINES} file of them")
    try:
        lines = read_bytes(path).splitlines()
    except OSError as error:
        raise unreadable(str(path), error, "its owner can change its rights") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line
