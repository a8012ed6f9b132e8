"""Parts of the script in order: the cheapest and most telling first.

What a part needs is imported when its turn comes, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.gpu.context import Context, Row, Rows

MINUTES = 8.0  # that the shares below are for


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
        title: what its table holds.
        takes: seconds on a large card, without which it is not begun.
        most: seconds after which it takes no new row, of MINUTES in all; None is all that are left.
        rows: finds it, row by row.
    """

    title: str
    takes: float
    most: float | None
    rows: Rows


def _machine(context: Context) -> Iterator[Row]:
    from benchmarks.gpu import machine

    return machine.rows(context)


def _codes(context: Context) -> Iterator[Row]:
    from benchmarks.gpu import codes

    return codes.rows(context)


def _sync(context: Context) -> Iterator[Row]:
    from benchmarks.gpu import sync

    return sync.rows(context)


def _iteration(context: Context) -> Iterator[Row]:
    from benchmarks.gpu import iteration

    return iteration.rows(context)


def _memory(context: Context) -> Iterator[Row]:
    from benchmarks.gpu import memory

    return memory.rows(context)


def _auto_round(context: Context) -> Iterator[Row]:
    from benchmarks.gpu import auto_round

    return auto_round.rows(context)


def _long(context: Context) -> Iterator[Row]:
    from benchmarks.gpu import long

    return long.rows(context)


PARTS: dict[str, Part] = {
    "machine": Part("The machine", 10, 20, _machine),
    "codes": Part("Tiny networks on the device against the CPU", 40, 110, _codes),
    "sync": Part("Synchronisations in an iteration", 20, 40, _sync),
    "iteration": Part("An iteration against the block's own passes", 50, 120, _iteration),
    "memory": Part("Memory and seconds of a whole block", 50, 120, _memory),
    "auto_round": Part("The same block by auto-round", 30, 60, _auto_round),
    "long": Part("Real weights, the paper's schedules", 60, None, _long),
}
