"""Selection of records: what each can be chosen by, and which have the values asked for."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from results.records.off import OFF, left_out
from results.records.record import Record

ABSENT = object()
FEW = 8  # values that a line can list


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def select(records: Sequence[Record], where: dict[str, str]) -> list[Record]:
    """Return the records whose settings, by dotted name, have the values of where.

    Raises:
        ValueError: when no record has a setting of that name.
    """
    chosen = list(records)
    for key, text in where.items():
        check_known(records, key, f"--where {key}={text}")
        # A group's member is told by its class: awq of the command line is AWQ.
        readings, folded = _readings(text), _folded(text)
        found = [(record, value_of(record, key)) for record in chosen]
        chosen = [r for r, v in found if _is_among(v, readings) or _folded(v) == folded]
    return chosen


def why_none(records: Sequence[Record], where: dict[str, str]) -> str:
    """Return which part of where no record has, with the values most like it."""
    for name, value in where.items():
        if not select(records, {name: value}):
            values = {str(v) for r in records if (v := value_of(r, name)) is not ABSENT}
            few = f"; there are {', '.join(sorted(values))}" if len(values) <= FEW else ""
            told = f"{name}={value}{nearest(value, values) or few}"
            return f"none of the {len(records)} records has {told}"
    told = " and ".join(f"{name}={value}" for name, value in where.items())
    return f"none of the {len(records)} records has {told} together"


def check_known(records: Sequence[Record], key: str, option: str) -> None:
    """Check that some record has key among its facts.

    Raises:
        ValueError: names option and the nearest keys where none has.
    """
    if all(value_of(record, key) is ABSENT for record in records):
        known = {name for record in records for name in facts(record)}
        raise ValueError(f"{option}: no record has a setting {key}{nearest(key, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the names most like name, or nothing."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3)
    # lr for recon.lr: what is written for short is not close.
    near = [*dict.fromkeys([*(k for k in known if k.endswith(f".{name}")), *near])][:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _is_among(value: Any, readings: Sequence[Any]) -> bool:
    """Return whether value is one of readings; true is not 1."""
    return any(value == r and isinstance(value, bool) == isinstance(r, bool) for r in readings)


def _folded(value: Any) -> str | None:
    return value.lower().replace("_", "") if isinstance(value, str) else None


def _readings(text: str) -> list[Any]:
    """Return what text may stand for: itself, a number, Hydra's true, false or null.

    As a table writes them too: True, False, None.
    """
    words: dict[str, Any] = {"true": True, "false": False, "null": None, "none": None}
    readings: list[Any] = [text]
    if text.lower() in words:
        readings.append(words[text.lower()])
    with suppress(ValueError):
        readings.append(float(text))
    return readings


# Told by the record itself.
NAMES = ("model", "task", "quant", "bits", "task_version", "metric", "average_bits")


def facts(record: Record) -> dict[str, Any]:
    """Return what a record can be chosen by: its settings by dotted name, and what it is of.

    Among the settings are those that it leaves out because they are off.
    """
    named = {name: getattr(record, name) for name in NAMES}
    return flatten(record.settings) | dict(left_out(record.settings)) | named


def fact(record: Record, name: str, default: Any = None) -> Any:
    """Return the one of facts(record) that has this name, without making the others."""
    if name in NAMES:
        return getattr(record, name)
    found = _below(record.settings, name, ABSENT)
    if found is ABSENT and name in OFF:
        found = dict(left_out(record.settings)).get(name, ABSENT)
    return default if found is ABSENT else found


def _below(node: dict[str, Any], name: str, default: Any) -> Any:
    """Return what flatten(node) has of name; a key may have dots of its own."""
    found = node.get(name, ABSENT)
    if found is not ABSENT and not isinstance(found, dict):
        return found
    parts = name.split(".")
    for end in range(1, len(parts)):
        branch = node.get(".".join(parts[:end]))
        if isinstance(branch, dict):
            found = _below(branch, ".".join(parts[end:]), ABSENT)
            if found is not ABSENT:
                return found
    return default


def unlike(records: Sequence[Record]) -> set[str]:
    """Return the settings, of the first level, in which the records may differ.

    What one object stands for in all of them they do not differ in, which is seen at once.
    """
    found: set[str] = set()
    first = records[0].settings
    for record in records[1:]:
        own = record.settings
        found |= own.keys() ^ first.keys()
        found |= {key for key in own.keys() & first.keys() if not _is_same(own[key], first[key])}
    return found


def _is_same(left: Any, right: Any) -> bool:
    """Return whether two values are one, or plain and alike; true is not 1."""
    if left is right:
        return True
    return type(left) is type(right) and not isinstance(left, dict | list) and left == right


def spelled(value: Any) -> str:
    """Return a setting's value as tables have it, and as select takes it back."""
    return json.dumps(value) if isinstance(value, list) else str(value)


def value_of(record: Record, setting: str) -> Any:
    """Return record's value of setting, for a config group the name of its class; or ABSENT."""
    value = fact(record, setting, ABSENT)
    if value is not ABSENT:
        return spelled(value) if isinstance(value, list) else value
    return fact(record, f"{setting}._target_", ABSENT)
