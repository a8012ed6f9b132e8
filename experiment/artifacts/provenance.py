"""Provenance of an artifact, told from its header alone, without torch."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.values import MOST_THREADS
from flexround.artifact.header import locate, read_header
from results.records.record import Record


@dataclass(frozen=True)
class Provenance:
    """What an artifact states of the run that made it.

    Attributes:
        metric, value: the run's main metric, and what it was.
        device, torch: what it was computed on and with.
        threads: how many threads it was computed with.
        overrides: what the run was asked for, as it stands in the file, unchecked.
    """

    run_id: str
    started: str
    metric: str
    value: float
    device: str
    torch: str
    threads: int
    overrides: Any


def provenance_of(path: str | Path) -> Provenance:
    """Return what the artifact at path states of the run that made it.

    Raises:
        ValueError: when there is no artifact, or one that does not say.
    """
    file = locate(path)
    facts = read_header(file)[0].get("facts")
    record = _part(facts, "record", dict, file)
    value = _part(record, "value", (int, float), file)
    threads = _part(facts, "threads", int, file)
    if not (math.isfinite(value) and 1 <= threads <= MOST_THREADS):
        raise ValueError(f"artifact {file} states value {value}, {threads} threads: no such run")
    return Provenance(
        **{name: _part(record, name, str, file) for name in ("run_id", "started", "metric")},
        value=value,
        device=_part(record, "device", str, file),
        torch=_part(_part(record, "versions", dict, file), "torch", str, file),
        threads=threads,
        overrides=record.get("overrides"),
    )


def _part(facts: Any, name: str, kind: Any, file: Path) -> Any:
    """Return the entry called name of facts, which is of that kind and fits on a line.

    Raises:
        ValueError: when it is not there, or not.
    """
    value = facts.get(name) if isinstance(facts, dict) else None
    odd = isinstance(value, bool) or (isinstance(value, str) and not value.isprintable())
    if odd or not isinstance(value, kind):
        raise ValueError(f"artifact {file} does not say what run made it: {name} is missing or odd")
    return value


def is_of(path: Path, record: Record) -> bool:
    """Return whether the artifact at path is there and of this very attempt."""
    try:
        held = provenance_of(path)
    except ValueError:
        return False
    names = (record.run_id, *record.former_ids)
    return held.run_id in names and held.started == record.started


def check_free(path: Path, names: Collection[str]) -> None:
    """Check that at path lies nothing, or an artifact of a run called one of names.

    Raises:
        ValueError: when something else does.
    """
    if not path.exists():
        return
    try:
        owner = provenance_of(path).run_id
    except ValueError as error:
        raise ValueError(f"save=true writes to {path}, and that exists: {error}") from error
    if owner not in names:
        raise ValueError(f"save=true writes to {path}, which holds the artifact of run {owner}")
