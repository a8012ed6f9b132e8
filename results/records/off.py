"""Options and config groups that are off, which records leave out, and what they are called then.

A record from before an option was there has the name of one in which it is off. Where a method has
no such option, as one without iterations has nothing of recon, there is no value that is off.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TARGET = "_target_"
# Each option's value, by dotted name; what is empty is off as well where that is.
OPTIONS: dict[str, Any] = {
    "stream_dtype": "float32", "bits_per_layer": None, "model.leave": [],
    "recon.loss": "squared", "recon.start": "nearest", "recon.last_loss": "block",
    "recon.held_out": 0, "recon.patience": 0, "recon.e2e_iters": 0,
    "task.corpus.joined_by": "blank_line", "task.begin_with_bos": False,
}  # fmt: skip
# The member of each group that is no object.
GROUPS = {"transform": "none", "allocation": "none", "grid": "integer"}
# By the names that a record's settings have when they are flat: a group is told by its class.
OFF = OPTIONS | {f"{group}.{TARGET}": member for group, member in GROUPS.items()}
LOOP, LEARNS = "recon", "unit"  # the loop whose options only a method that learns has


def is_off(path: str, value: Any) -> bool:
    """Return whether value, of the option or group at path, is what records leave out."""
    if path in GROUPS:
        return value is None
    off = OPTIONS[path]
    return bool(value == off or not (value or off))


def left_out(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what a record's settings leave out because it is off: the flat name and the value."""
    for path, node, last in _places(settings):
        if node.get(last) is None:
            name = f"{path}.{TARGET}" if path in GROUPS else path
            yield name, OFF[name]


def turned_on(settings: dict[str, Any]) -> set[str]:
    """Return which of the options and groups a record's settings have, as they are not off."""
    return {path for path, node, last in _places(settings) if node.get(last) is not None}


def _places(settings: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield each path that the settings have a place for, with the node and its last name there."""
    for path in (*OPTIONS, *GROUPS):
        *parents, last = path.split(".")
        node: Any = settings
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict) and (parents != [LOOP] or node.get(LEARNS) is not None):
            yield path, node, last
