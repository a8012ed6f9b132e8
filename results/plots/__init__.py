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
OF_INTEGERS = "shift"  # a kind that records do not suffice for
OF_UNITS = ("blocks", "curves", "cost")  # kinds that look at the records' units
# By the ending of a file, what is written into it beside the picture: the same bytes each time.
ENDINGS: dict[str, dict[str, None]] = {
    "svg": {"Date": None},
    "png": {},
    "pdf": {"CreationDate": None},
}
BESIDE = ("svg", "png")  # of each figure in a folder
# The setting that is the axis of a kind, and so tells no lines apart.
AXES = {"samples": "num_samples"}


def figures(kind: str, records: Sequence[Record], by: Sequence[str] = ()) -> dict[str, Figure]:
    """Return the figures of a kind by name; by tells lines apart as it does a table's rows.

    Raises:
        ValueError: for another kind, when there is nothing to draw, or when different
            configurations fall into one point.
    """
    if kind == OF_INTEGERS:
        raise ValueError(
            "plot shift draws integers, which records do not keep: `python -m results plot shift "
            "--run ID --layer NAME` takes those of a run with save=true, results.plots.shift.shift "
            "those in memory"
        )
    if kind not in KINDS:
        given = f"plot {kind}" if kind else "plot"
        raise ValueError(f"{given}: give one of {', '.join([*KINDS, OF_INTEGERS])}")
    with rc_context(RC):
        return KINDS[kind](cells(records, by, AXES.get(kind)))


def write(drawn: dict[str, Figure], out: Path) -> list[Path]:
    """Write each figure as NAME.svg and NAME.png into the folder out and return the paths.

    Where out ends as ENDINGS do it is the file of the one figure. The same figures give the same
    bytes.

    Raises:
        ValueError: when a file can't be written, or is to hold several figures.
    """
    ending = out.suffix.lower().lstrip(".")
    if ending in ENDINGS and not out.is_dir():
        if len(drawn) > 1:
            raise ValueError(f"--out {out}: there are {len(drawn)} figures; give a folder")
        files = [(out, ending, figure) for figure in drawn.values()]
    else:
        files = [(out / f"{n}.{e}", e, figure) for n, figure in drawn.items() for e in BESIDE]
    try:
        for path, ending, figure in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = io.BytesIO()
            with rc_context(RC):
                figure.savefig(file, format=ending, metadata=ENDINGS[ending])
            write_whole(path, file.getvalue())
    except OSError as error:
        raise ValueError(f"--out {out}: {error.strerror}; give another, or make room") from error
    return [path for path, _, _ in files]
