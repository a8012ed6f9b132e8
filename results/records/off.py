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
    "recon.held_out": 0, "recon.patience": 0,
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
    loop = settings.get(LOOP)
    learns = isinstance(loop, dict) and loop.get(LEARNS) is not None
    on = turned_on(settings)
    for path in (*OPTIONS, *GROUPS):
        if path not in on and (learns or not path.startswith(f"{LOOP}.")):
            name = f"{path}.{TARGET}" if path in GROUPS else path
            yield name, OFF[name]


def turned_on(settings: dict[str, Any]) -> set[str]:
    """Return which of the options and groups a record's settings have, as they are not off."""
    found = set()
    for path in (*OPTIONS, *GROUPS):
        parent, _, last = path.rpartition(".")
        node = settings.get(parent) if parent else settings
        if isinstance(node, dict) and node.get(last) is not None:
            found.add(path)
    return found
