"""Provenance of an artifact, told from its header alone, without torch."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from flexround.artifact.header import locate, read_header
from results.records.record import Record


def facts_of(path: str | Path) -> dict[str, Any]:
    """Return what the artifact at path says of the run that made it: record, source, threads.

    Raises:
        ValueError: when there is no artifact, or one that does not say.
    """
    file = locate(path)
    header, _ = read_header(file)
    try:
        facts: dict[str, Any] = header["facts"]
        facts["record"]["run_id"], facts["record"]["started"], facts["threads"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"artifact {file} does not say what run made it") from error
    return facts


def record_of(path: str | Path) -> dict[str, Any]:
    """Return the record, without its blocks, that the artifact at path was made with.

    Raises:
        ValueError: when there is no artifact, or one without a record.
    """
    record: dict[str, Any] = facts_of(path)["record"]
    return record


def is_of(path: Path, record: Record) -> bool:
    """Return whether the artifact at path is there and of this very attempt."""
    try:
        held = record_of(path)
    except ValueError:
        return False
    names = (record.run_id, *record.former_ids)
    return held["run_id"] in names and held["started"] == record.started


def check_free(path: Path, names: Collection[str]) -> None:
    """Check that at path lies nothing, or an artifact of a run called one of names.

    Raises:
        ValueError: when something else does.
    """
    if not path.exists():
        return
    try:
        owner = record_of(path)["run_id"]
    except ValueError as error:
        raise ValueError(f"save=true writes to {path}, and that exists: {error}") from error
    if owner not in names:
        raise ValueError(f"save=true writes to {path}, which holds the artifact of run {owner}")
