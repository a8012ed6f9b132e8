"""Searches over a method's settings, kept beside the records of their trials.

A search is a file searches/NAME.json: its budget, its space, and the run of each trial. What a
trial found stands in its record alone, and so does what it was chosen by.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flexround.utils.atomic_files import write_whole
from results.records.record import Record

FOLDER = "searches"


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        values: the searched settings, by dotted name.
        run_id: of its record; None where the run left none.
    """

    values: dict[str, Any]
    run_id: str | None


@dataclass(frozen=True)
class Search:
    """One method's search in one setting.

    Attributes:
        name: of its file.
        method: the method.
        setting: the overrides that all its trials share, but for the method's.
        space: the searched settings, as Hydra writes them.
        budget: how many trials it has when it is done.
        trials: those that have been run, in their order.
        chosen: the number of the best trial among them; None where none has ended well.
    """

    name: str
    method: str
    setting: list[str]
    space: dict[str, str]
    budget: int
    trials: list[Trial] = field(default_factory=list)
    chosen: int | None = None


def held_out_error(record: Record) -> float | None:
    """Return the geometric mean of the units' errors on held-out samples, None where none is known.

    No metric of a test set has a part in it.
    """
    errors: list[float] = [block.get("held_out_after") or 0.0 for block in record.blocks]
    if record.status != "ok" or not errors or not all(error > 0 for error in errors):
        return None
    return math.exp(fmean(math.log(found) for found in errors))


def write(results: Path, search: Search) -> Path:
    """Write search below the folder of results, whole or not at all; return its file."""
    folder = results / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{search.name}.json"
    write_whole(path, (json.dumps(asdict(search), indent=1) + "\n").encode())
    return path


def load(results: Path) -> Iterator[Search]:
    """Yield the searches below the folder of results, by name.

    Raises:
        ValueError: when a file is none.
    """
    adapter = TypeAdapter(Search)
    for path in sorted((results / FOLDER).glob("*.json")):
        try:
            yield adapter.validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(
                f"{path} is no search ({first['msg']}); move it away, the same search makes it anew"
            ) from error
