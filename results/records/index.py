"""Index beside the records of a large folder: their rows, without the units that few views look at.

It is a cache and never the truth. A row stands for a file as long as the file's inode, size and
times are those that it was read with; every other file is read itself, and so are all where the
index is missing, damaged or of another version. An index that can't be written costs time alone.

The file: a line with the version and the digest of what follows, then segments, one JSON array a
line: texts and rows. Most of a record is what many have in common, such as the settings of a task:
a segment has each such value once, as text, and its rows have numbers of texts. Of equal texts
there is one object in memory.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from pydantic_core import from_json, to_json

from flexround.utils.atomic_files import write_whole
from results.records.record import SCHEMA, Record

log = logging.getLogger(__name__)

NAME = ".index"
FEWEST = 1000  # records that are worth an index
MANY = 100  # files read that are worth writing it again
SETTLED = 2.0  # seconds after which a file system's clock tells two writes of a file apart
SEGMENT = 2000  # rows
MOST_BYTES = 100_000  # for each record that there is; a larger index is none of ours

# Equal in many records. The settings are too, one by one.
SHARED = ("fp_metrics", "left", "versions", "places", "conditions", "former_ids")
OWN = tuple(
    field.name for field in dataclasses.fields(Record)
    if field.name not in (*SHARED, "settings", "blocks")
)  # fmt: skip
VERSION = hashlib.sha256(repr((1, SCHEMA, OWN, SHARED)).encode()).hexdigest()[:16].encode()

# Inode, size, and times in ns, of which no program sets the last back.
Stamp = list[int]
Read = Callable[[Path], Record | None]


class NotRead(list[Any]):
    """The blocks of a row: the record itself may have some."""

    def _refuse(self, *_: object) -> NoReturn:
        raise AssertionError("a row has no blocks; load the record with blocks=True")

    __iter__ = __len__ = __getitem__ = __bool__ = _refuse

    def __repr__(self) -> str:
        return "NotRead()"


NOT_READ = NotRead()


def rows(root: Path, read: Read) -> list[Record]:
    """Return the records in root without their blocks, in the order of their files' names.

    read returns the record in a file, None where there is none that can be read.

    Raises:
        ValueError: when the folder can't be listed.
    """
    began, stamps, texts = time.time(), _stamps(root), _Texts()
    body = _body(root / NAME, len(stamps))
    try:
        found, held = _known(body, stamps, texts)
    except (ValueError, TypeError, IndexError, AttributeError, RecursionError) as error:
        log.debug("the index of %s is passed over: %r", root, error)
        body, found, held = b"", {}, 0
    dead = held - len(found)
    fresh = sorted(stamps.keys() - found.keys())
    for name in fresh:
        if (record := read(root / name)) is not None:
            found[name] = _row(record, texts)
    if len(found) >= FEWEST and (len(fresh) >= MANY or dead > len(found)):
        if dead > len(found):
            body, fresh = b"", list(found)
        # No file that could be written again without its times telling.
        settled = [n for n in fresh if n in found and _is_settled(stamps[n], began)]
        segments = _Segments()
        for name in settled:
            segments.add(name, stamps[name], found[name])
        if settled:
            _write(root / NAME, body + segments.body())
    return [found[name] for name in sorted(found)]


def _is_settled(stamp: Stamp | None, began: float) -> bool:
    return stamp is not None and stamp[-1] / 1e9 < began - SETTLED


class _Texts:
    """Values by their JSON text, of which there is one object each."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def value(self, text: str) -> Any:
        """Return the value."""
        if text not in self._values:
            self._values[text] = from_json(text)
        return self._values[text]


def _text(value: Any) -> str:
    return to_json(value, inf_nan_mode="constants").decode()


def _row(record: Record, texts: _Texts) -> Record:
    """Return record without its blocks, equal values shared with other records."""
    row = copy.copy(record)  # which is checked already
    for name in SHARED:
        object.__setattr__(row, name, texts.value(_text(getattr(record, name))))
    settings = {k: texts.value(_text(v)) for k, v in record.settings.items()}
    object.__setattr__(row, "settings", settings)
    object.__setattr__(row, "blocks", NOT_READ)
    return row


def _sharing(data: Mapping[str, Any]) -> Record:
    """Return the row with data, checked as a record's file is."""
    row = Record.from_json(dict(data))
    for name in SHARED:  # which the check has copied
        object.__setattr__(row, name, data[name])
    object.__setattr__(row, "blocks", NOT_READ)
    return row


class _Segments:
    """Segments of an index to be written."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._texts: list[str] = []
        self._numbers: dict[int, int] = {}  # by id: of equal values there is one object
        self._rows: list[Any] = []

    def add(self, name: str, stamp: Stamp | None, row: Record) -> None:
        """Add the row of the file called name."""
        settings = [self._number(row.settings[key]) for key in row.settings]
        keys = list(row.settings)
        shared = [self._number(getattr(row, key)) for key in SHARED]
        own = [getattr(row, key) for key in OWN]
        self._rows.append([name, stamp, keys, settings, shared, own])
        if len(self._rows) == SEGMENT:
            self._close()

    def body(self) -> bytes:
        """Return the segments as lines."""
        self._close()
        return b"".join(self._lines)

    def _number(self, value: Any) -> int:
        number = self._numbers.setdefault(id(value), len(self._texts))
        if number == len(self._texts):
            self._texts.append(_text(value))
        return number

    def _close(self) -> None:
        if self._rows:
            line = to_json([self._texts, self._rows], inf_nan_mode="constants")
            self._lines.append(line + b"\n")
        self._texts, self._numbers, self._rows = [], {}, []


def _known(
    body: bytes, stamps: Mapping[str, Stamp | None], texts: _Texts
) -> tuple[dict[str, Record], int]:
    """Return by name the rows of files that are as they were, and how many rows body has."""
    found: dict[str, Record] = {}
    held = 0
    for line in io.BytesIO(body):
        segment, entries = from_json(line)
        held += len(entries)
        values = [texts.value(text) for text in segment]
        for name, stamp, keys, settings, shared, own in entries:
            if stamp is None or stamps.get(name) != stamp:
                continue
            data = dict(zip(OWN, own, strict=True))
            data |= zip(SHARED, [values[n] for n in shared], strict=True)
            data["settings"] = dict(zip(keys, [values[n] for n in settings], strict=True))
            found[name] = _sharing(data)
    return found, held


def _stamps(root: Path) -> dict[str, Stamp | None]:
    """Return the records' files by name, None for one whose stamp can't be read."""
    found: dict[str, Stamp | None] = {}
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if entry.name.endswith(".json"):
                    found[entry.name] = _stamp(entry)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ValueError(f"{root} can't be listed ({error.strerror})") from error
    return found


def _stamp(entry: os.DirEntry[str]) -> Stamp | None:
    try:
        stat = entry.stat()
    except OSError:  # told where the file is read
        return None
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _body(path: Path, records: int) -> bytes:
    """Return the segments in path; nothing where they are not those that were written."""
    try:
        if path.stat().st_size > MOST_BYTES * records:
            return b""
        head, _, body = path.read_bytes().partition(b"\n")
    except OSError:
        return b""
    return body if head == _head(body) else b""


def _head(body: bytes) -> bytes:
    return VERSION + b" " + hashlib.sha256(body).hexdigest().encode()


def _write(path: Path, body: bytes) -> None:
    try:
        write_whole(path, _head(body) + b"\n" + body)
    except OSError as error:
        log.debug("the index %s is not written: %s", path, error.strerror)
