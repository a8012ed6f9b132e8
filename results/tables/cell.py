"""What runs in one cell of a table may differ in, and in what they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from results.records.off import left_out
from results.records.record import Record
from results.records.selection import fact, flatten, spelled, unlike

SEEDS = ("seed", "quant.seed")  # what runs of one cell may differ in
BITS = "average_bits"  # over layers
OF_LAYERS = ("bits_per_layer", "allocation")  # whose runs are told apart by average_bits


def bits_asked(record: Record) -> float | None:
    """Return the mean of bits that a run's layers were to have.

    An allocation comes near to what it is asked for, with each seed at another number.
    """
    asked: float | None = fact(record, "allocation.average_bits", None)
    return record.average_bits if asked is None else asked


def is_like(failed: Record, done: Sequence[Record]) -> bool:
    """Return whether failed has the settings of the runs that are done, the seed aside."""
    return not done or any(_same_but_seeds(failed, r) for r in done)


def _same_but_seeds(left: Record, right: Record) -> bool:
    names = unlike([left, right]).difference(SEEDS)
    return not names or _but_seeds(left, names) == _but_seeds(right, names)


def _but_seeds(record: Record, names: set[str]) -> dict[str, Any]:
    """Return the settings below names, of the first level, by dotted name."""
    own = {k: v for k, v in record.settings.items() if k in names}
    off = {k: v for k, v in left_out(record.settings) if k.partition(".")[0] in names}
    return {k: v for k, v in (flatten(own) | off).items() if k not in SEEDS}


def differing(members: Sequence[Record]) -> dict[str, list[str]]:
    """Return what members of one cell differ in but their seed, with the values."""
    early = ("task_version", "metric")  # which a run that failed early does not know
    top = unlike(members).difference(SEEDS)
    flats = [_but_seeds(r, top) | {k: fact(r, k) for k in early} for r in members]
    names = dict.fromkeys(name for flat in flats for name in flat)
    if any(name.partition(".")[0] in OF_LAYERS for name in names):
        flats = [flat | {BITS: bits_asked(r)}
                 for flat, r in zip(flats, members, strict=True)]  # fmt: skip
        names[BITS] = None
    differing = {}
    for name in names:
        values = list(dict.fromkeys(spelled(flat.get(name, "-")) for flat in flats))
        if name in early:
            values = [value for value in values if value != "None"]
        if len(values) > 1:
            differing[name] = values
    return differing
