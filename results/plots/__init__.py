"""Plots of records, as SVG and PNG: `python -m results plot KIND`."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from flexround.utils.atomic_files import write_whole
from results.plots.cells import Cell, cells
from results.plots.cost import cost
from results.plots.curves import curves
from results.plots.lines import bits, samples
from results.plots.style import RC
from results.plots.units import blocks
from results.records.record import Record

KINDS: dict[str, Callable[[list[Cell]], dict[str, Figure]]] = {
    "bits": bits,
    "samples": samples,
    "blocks": blocks,
    "curves": curves,
    "cost": cost,
}
OF_UNITS = ("blocks", "curves", "cost")  # kinds that look at the records' units
# The setting that is the axis of a kind, and so tells no lines apart.
AXES = {"samples": "num_samples"}


def figures(kind: str, records: Sequence[Record], by: Sequence[str] = ()) -> dict[str, Figure]:
    """Return the figures of a kind by name; by tells lines apart as it does a table's rows.

    Raises:
        ValueError: for another kind, when there is nothing to draw, or when different
            configurations fall into one point.
    """
    if kind not in KINDS:
        given = f"plot {kind}" if kind else "plot"
        raise ValueError(f"{given}: give one of {', '.join(KINDS)}")
    with rc_context(RC):
        return KINDS[kind](cells(records, by, AXES.get(kind)))


def write(drawn: dict[str, Figure], out: Path) -> list[Path]:
    """Write each figure as NAME.svg and NAME.png into the folder out and return the paths.

    The same figures give the same bytes.

    Raises:
        ValueError: when a file can't be written.
    """
    paths = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        with rc_context(RC):
            for name, figure in drawn.items():
                for ending, metadata in (("svg", {"Date": None}), ("png", {})):
                    file = io.BytesIO()
                    figure.savefig(file, format=ending, metadata=metadata)
                    paths.append(out / f"{name}.{ending}")
                    write_whole(paths[-1], file.getvalue())
    except OSError as error:
        raise ValueError(f"--out {out}: {error.strerror}; give another, or make room") from error
    return paths
