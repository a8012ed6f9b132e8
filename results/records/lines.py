"""Records in one file, a line each: a record alone, or one with the outcomes of its samples.

Settings of one task, model or method are the same in many records: such a part is a line of its
own, before the records, which name it by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from flexround.utils.file_errors import read_bytes, unreadable
from results.records.record import Record, checked
from results.records.texts import check_texts

if TYPE_CHECKING:
    from results.records.outcomes import Outcomes

LINES = ".jsonl"  # what such a file's name ends with
STORED = b"PK"  # how outcomes begin that are not deflated, as they were before
MOST = 1 << 26  # bytes of a run's outcomes; those of 50,000 images are some thousand


Entry = tuple[Record, "Outcomes"]
Parts = dict[str, dict[str, Any]]  # of settings, by their digests


def _line(record: Record, outcomes: Outcomes, parts: Parts) -> str:
    """Return record with its outcomes; put its settings of several values into parts."""
    data = record.to_json()
    for field in fields(record):
        empty = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name != "schema" and data[field.name] == empty:
            del data[field.name]
    settings, named = {}, {}
    for name, value in data["settings"].items():
        if isinstance(value, dict):
            named[name] = _digest(value)
            parts[named[name]] = value
        else:
            settings[name] = value
    entry: dict[str, Any] = {"record": data | {"settings": settings}, "parts": named}
    if outcomes:
        from results.records.outcomes import pack

        deflated = zlib.compress(pack(outcomes, record.started), level=9)
        entry["outcomes"] = base64.b64encode(deflated).decode()
    return _json(entry)


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(_json(settings).encode()).hexdigest()[:16]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def to_lines(entries: Iterable[Entry]) -> bytes:
    """Return records with their outcomes as the bytes of a file, a line each, ordered by run."""
    ordered = sorted(entries, key=lambda entry: entry[0].run_id)
    parts: Parts = {}
    lines = [_line(record, outcomes, parts) for record, outcomes in ordered]
    named = [_json({"part": digest, "settings": parts[digest]}) for digest in sorted(parts)]
    return "".join(f"{line}\n" for line in [*named, *lines]).encode()


def entries_of(path: Path) -> Iterator[tuple[int, Entry | ValueError]]:
    """Yield the records of a file with their outcomes, each with its line's number from 1.

    For a line that holds none there is what is wrong with it.

    Raises:
        ValueError: when it is no such file, or can't be read.
    """
    parts: Parts = {}
    for number, line in _lines_of(path):
        try:
            held = from_json(line)
            if isinstance(held, dict) and "part" in held:
                parts |= _part(held, line)
            else:
                yield number, _entry(held, line, parts)
        except ValueError as error:
            yield number, error


def _part(held: dict[str, Any], line: bytes) -> Parts:
    """Return the part of settings that a line holds, by its digest.

    Raises:
        ValueError: when the digest is another one, or a text is no plain one.
    """
    digest, settings = held["part"], held.get("settings")
    if not isinstance(settings, dict) or digest != _digest(settings):
        raise ValueError("a part of settings that is not what its name says")
    check_texts(settings, line)
    return {digest: settings}


def _entry(held: Any, line: bytes, parts: Parts) -> Entry:
    if not isinstance(held, dict) or "record" not in held:
        return checked(held, line), {}
    record = checked(_whole(held["record"], held.get("parts", {}), parts), line)
    packed = held.get("outcomes", "")
    if not isinstance(packed, str):
        raise ValueError("outcomes that are no text")
    if not packed:
        return record, {}
    from results.records.outcomes import unpack

    return record, unpack(_inflated(base64.b64decode(packed)), record.started)


def _whole(record: Any, named: Any, parts: Parts) -> Any:
    """Return record with the settings that it only names.

    Raises:
        ValueError: when no line before has them.
    """
    settings = record.get("settings") if isinstance(record, dict) else None
    if not isinstance(settings, dict) or not named:
        return record
    if not isinstance(named, dict):
        raise ValueError("parts of settings that have no names")
    if lost := [name for name, digest in named.items() if str(digest) not in parts]:
        raise ValueError(f"settings {lost[0]!a}: {named[lost[0]]!a}, which no line before holds")
    return record | {"settings": settings | {name: parts[str(d)] for name, d in named.items()}}


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


def _lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
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
