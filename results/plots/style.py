"""Style of the plots: readable in black and white, and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from results.plots.cells import Cell

RC: Any = {  # matplotlib types its keys
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
    "savefig.dpi": 200,
    "svg.hashsalt": "flexround",  # or the ids, and so the file, differ from run to run
}
# Okabe and Ito's colours, which the colour-blind can tell apart; in print, markers and dashes do.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2, 1, 1, 1, 2)))
FULL: dict[str, Any] = {
    "zorder": 1.5,
    "label": "full precision",
    "color": "0.45",
    "linestyle": (0, (10, 4)),
    "linewidth": 0.8,
}
LOG_FROM = 10  # largest over smallest value from which an axis is logarithmic
UNITLESS = ("perplexity",)  # the other metrics are in percent


def styles(cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """Return how each label is drawn, in the order of the cells."""
    labels = dict.fromkeys(cell.label for cell in cells)
    return {
        label: {
            "label": label,
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": DASHES[i % len(DASHES)],
            "markerfacecolor": "white" if i % 2 else COLOURS[i % len(COLOURS)],
        }
        for i, label in enumerate(labels)
    }


def grid(
    rows: int, columns: int, width: float = 3.8, height: float = 2.9, **options: Any
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and its axes by row and column; width and height are a panel's, in inches."""
    figure = Figure(figsize=(width * columns, height * rows + 0.1), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options).tolist()


def wrapped(panels: int, most: int, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many panels, at most so many in a row, and its axes."""
    columns = min(panels, most)
    figure, rows = grid(-(-panels // columns), columns, **options)
    flat = [ax for row in rows for ax in row]
    for ax in flat[panels:]:
        ax.remove()
    return figure, flat[:panels]


def legend(figure: Figure) -> None:
    """Put one legend under all panels, each label once and full precision last."""
    lines = [line for ax in figure.axes for line in ax.lines]
    # An underscore is how matplotlib names what belongs to another line, such as caps.
    shown = {label: line for line in lines if (label := str(line.get_label()))[0] != "_"}
    if FULL["label"] in shown:
        shown[FULL["label"]] = shown.pop(FULL["label"])
    widest = 0.65 + 0.06 * max(len(label) for label in shown)  # inches, of one entry
    columns = min(len(shown), max(1, int(figure.get_figwidth() // widest)))
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(shown) // columns))
    figure.legend(
        list(shown.values()), list(shown), loc="outside lower center",
        ncols=columns, handlelength=3.5,
    )  # fmt: skip


def metric_axis(ax: Axes, cells: Sequence[Cell]) -> None:
    """Name the y axis after the cells' metric and draw the full-precision value."""
    first = cells[0].records[0]
    fps = sorted({float(f"{cell.fp:.6g}") for cell in cells if cell.fp is not None})
    values = [value for cell in cells for value in cell.values] + fps
    unit = "" if first.metric in UNITLESS else " [%]"
    better = "higher" if first.higher_is_better else "lower"
    wide = not first.higher_is_better and log_if_wide(ax, "y", values)
    ax.set_ylabel(f"{first.metric}{unit} ({better} is better{', log scale' if wide else ''})")
    for fp in fps:
        ax.axhline(fp, **FULL)


def log_if_wide(ax: Axes, which: str, values: Sequence[float]) -> bool:
    """Make an axis logarithmic where positive values differ a lot; return whether it is."""
    if not values or min(values) <= 0 or max(values) / min(values) < LOG_FROM:
        return False
    ax.set(**{f"{which}scale": "log"})
    few_ticks(ax.xaxis if which == "x" else ax.yaxis)
    return True


def few_ticks(axis: Axis) -> None:
    """Label powers of ten, and numbers between them where a logarithmic axis holds few powers."""
    low, high = axis.get_view_interval()
    for span, between in ((5, (1, 1.5, 2, 3, 5, 7)), (100, (1, 2, 5))):
        if high / low < span:
            axis.set_major_locator(LogLocator(subs=between))
            axis.set_major_formatter("{x:g}")
            break
    axis.set_minor_formatter(NullFormatter())
