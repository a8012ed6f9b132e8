"""What command lines gave: a record's overrides by name, each value spelled in one way."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from results.records.record import Record

# Options that decide nothing of a run's value, of which a run's name and cells have none. Of these
# whoever repeats a run has others: a record does not keep them.
OWN = (
    "logger", "results_dir", "cache_dir", "cache_gib", "progress", "compile", "recon.compile",
    "save", "rerun", "retry_failed", "stream_device", "stream_gib", "offload", "spill_dir",
)  # fmt: skip
# And these a record keeps, as they say where its data lay (their content is in the settings), what
# it worked on, what its network was checked against, and where its classes are.
SURROUNDINGS = (
    *OWN, "data_dir", "calibration_dir", "imagenet_dir", "checkpoints_dir", "task.checkpoints_dir",
    "task.cache_dir", "device", "threads", "task.num_workers", "expected_fp", "task.expected",
    "task.tolerance", "plugins", "hydra.searchpath",
)  # fmt: skip
# Numbers of Hydra's grammar, of a length that a number of ours can have.
NUMBER = re.compile(
    r"(?=.{1,40}$)[+-]?(?:(?:0|[1-9](?:_?\d)*)(?P<point>\.(?:\d(?:_?\d)*)?)?|(?P<only>\.\d(?:_?\d)*))"
    r"(?P<power>e[+-]?\d+)?",
    re.IGNORECASE | re.ASCII,
)


def word(value: Any) -> str:
    """Return a value as Hydra's command line has it."""
    return (
        str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    )


def spelled(text: str) -> str:
    """Return a value of the command line as `word` has it: a sweep hands on true as True."""
    if text.lower() in ("true", "false", "null"):
        return text.lower()
    if found := NUMBER.fullmatch(text):
        return word(float(text) if any(found.groups()) else int(text))
    return text


def by_hand(record: Record) -> dict[str, str]:
    """Return what the command line of record gave, by name of the option or config group."""
    given = [text.lstrip("+~").partition("=") for text in record.overrides or ()]
    return {name.partition("@")[0]: spelled(value) for name, _, value in given}


def chosen_by_hand(record: Record) -> dict[str, str]:
    """Return by_hand(record) without what decides nothing of its value."""
    return {n: v for n, v in by_hand(record).items() if not below(n, SURROUNDINGS)}


def below(name: str, branches: Iterable[str]) -> bool:
    """Return whether a dotted name is one of branches or lies below one."""
    return any(f"{name}.".startswith(f"{branch}.") for branch in branches)
