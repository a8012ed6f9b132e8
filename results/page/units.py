"""Units of runs as the page holds them: few digits, few points of a curve, as many runs as fit.

A record's units and curves are tens of kB, so ten thousand runs' would be hundreds of MB: the page
has those of the newest runs, up to BYTES or what the rest of it leaves, and names the command that
draws the others'.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from results.records.record import Record

BYTES = 4_000_000  # of all units together, at most
POINTS = 17  # of a curve
# A point's height is one of these letters, from the lowest loss of the curve to the highest.
LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def units_of(records: Iterable[Record], most: int = BYTES) -> dict[str, Any]:
    """Return what the page's script reads of the units of records, in at most most bytes.

    It has `names`, lists of units' names that runs share; `runs`, by run id the place of its names
    and what runs.js calls `UNIT` of each unit, nothing where it has none; `whole`, whether all
    records are there. records are read only as far as they fit.
    """
    names: dict[str, int] = {}
    runs: dict[str, list[Any]] = {}
    left = most
    for record in records:
        told = json.dumps([str(block.get("name", "")) for block in record.blocks])
        place = names.get(told, len(names))
        entry = [place, [_unit(block) for block in record.blocks]] if record.blocks else []
        left -= len(json.dumps({record.run_id: entry}, separators=(",", ":")))
        left -= len(told) if entry and place == len(names) else 0
        if left < 0:
            return {"names": [json.loads(known) for known in names], "runs": runs, "whole": False}
        runs[record.run_id] = entry
        if entry:
            names[told] = place
    return {"names": [json.loads(known) for known in names], "runs": runs, "whole": True}


def _unit(block: Mapping[str, Any]) -> list[Any]:
    """Return a unit's errors before and after, the same on held-out samples, seconds, its curve.

    The curve is its levels, the first and last loss and the last iteration.
    """
    keys = ("error_before", "error_after", "held_out_before", "held_out_after", "seconds")
    return [*(number(block.get(key)) for key in keys), *_curve(block.get("curve"))]


def number(value: Any) -> str:
    """Return value with three significant digits; nothing where it is no number."""
    try:
        return f"{float(value):.3g}"
    except (TypeError, ValueError, OverflowError):
        return ""


def _curve(points: Any) -> list[Any]:
    """Return the levels of [iteration, loss] points, the first and last loss, the last iteration.

    Levels are those of the logarithm of a positive loss, POINTS of them, evenly chosen with both
    ends; a curve of fewer than two positive losses has none.
    """
    try:
        found = [(int(iteration), float(loss)) for iteration, loss in points or ()]
    except (TypeError, ValueError, OverflowError):
        return []
    found = [(iteration, loss) for iteration, loss in found if 0 < loss < math.inf]
    if len(found) < 2:
        return []
    last = len(found) - 1
    steps = min(last, POINTS - 1)
    kept = [found[round(i * last / steps)] for i in range(steps + 1)]
    return [levels([math.log(loss) for _, loss in kept]), number(found[0][1]), number(found[-1][1]),
            found[-1][0]]  # fmt: skip


def levels(values: Sequence[float]) -> str:
    """Return a letter of LEVELS for each value: the first for the lowest, the last for the top."""
    low, high = min(values), max(values)
    top = len(LEVELS) - 1
    span = high - low or 1.0
    return "".join(LEVELS[round(top * (value - low) / span)] for value in values)
