"""Selection of records: what each can be chosen by, and which have the values asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from results.records.record import Record


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
        chosen = [r for r in chosen if facts(r).get(key) in _readings(text)]
    return chosen


def check_known(records: Sequence[Record], key: str, option: str) -> None:
    """Check that some record has key among its facts.

    Raises:
        ValueError: names option and the nearest keys where none has.
    """
    known = {name for record in records for name in facts(record)}
    if key not in known:
        raise ValueError(f"{option}: no record has a setting {key}{nearest(key, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the names most like name, or nothing."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3)
    # lr for recon.lr: what is written for short is not close.
    near = [*dict.fromkeys([*(k for k in known if k.endswith(f".{name}")), *near])][:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _readings(text: str) -> list[Any]:
    """Return what text may stand for: itself, a number, Hydra's true, false or null."""
    words: dict[str, Any] = {"true": True, "false": False, "null": None}
    readings: list[Any] = [text]
    if text.lower() in words:
        readings.append(words[text.lower()])
    with suppress(ValueError):
        readings.append(float(text))
    return readings


def facts(record: Record) -> dict[str, Any]:
    """Return what a record can be chosen by: its settings by dotted name, and what it is of."""
    names = {
        "model": record.model,
        "task": record.task,
        "quant": record.quant,
        "task_version": record.task_version,
        "metric": record.metric,
    }
    return flatten(record.settings) | names
