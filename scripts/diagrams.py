"""Diagrams of the docs: boxes and arrows, drawn for a light and for a dark page.

`make figures` writes them to docs/figures/NAME-light.svg and NAME-dark.svg.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from experiment import ROOT

FIGURES = ROOT / "docs" / "figures"
INK = {"light": "#1f2430", "dark": "#e6e8ee"}
PALE = {"light": "#667085", "dark": "#a3abc0"}
FILL = {
    "light": {"plain": "#eef1f7", "quantized": "#fde7d7", "loss": "#dcefe5"},
    "dark": {"plain": "#2b3142", "quantized": "#513620", "loss": "#1f4434"},
}
RC: Any = {"svg.hashsalt": "flexround", "svg.fonttype": "path", "mathtext.fontset": "dejavusans"}


@dataclass
class Canvas:
    """A drawing in units of one box's height; boxes are known by their names.

    Attributes:
        theme: light or dark.
    """

    theme: str
    width: float
    height: float
    boxes: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.figure = Figure(figsize=(self.width * 0.52, self.height * 0.52))
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_xlim(0, self.width)
        self.axes.set_ylim(0, self.height)
        self.axes.axis("off")

    def box(self, name: str, x: float, y: float, width: float, text: str, kind: str) -> None:
        """Draw a box with its lower left corner at x, y."""
        self.boxes[name] = (x, y, width, 1.0)
        shape = FancyBboxPatch(
            (x, y), width, 1.0, boxstyle="round,pad=0,rounding_size=0.15", linewidth=0.8,
            facecolor=FILL[self.theme][kind], edgecolor=PALE[self.theme],
        )  # fmt: skip
        self.axes.add_patch(shape)
        self.text(x + width / 2, y + 0.5, text)

    def text(self, x: float, y: float, text: str, pale: bool = False, side: str = "center") -> None:
        """Write text around, or from, x, y."""
        colour = (PALE if pale else INK)[self.theme]
        self.axes.text(x, y, text, color=colour, size=11, ha=side, va="center")

    def arrow(self, source: str, target: str, sides: str = "right left") -> None:
        """Draw an arrow between two boxes, from a side of one to a side of the other."""
        start, end = sides.split()
        shape = FancyArrowPatch(
            self._edge(source, start), self._edge(target, end), arrowstyle="-|>", linewidth=1.0,
            mutation_scale=9, color=INK[self.theme], shrinkA=1, shrinkB=1,
        )  # fmt: skip
        self.axes.add_patch(shape)

    def _edge(self, name: str, side: str) -> tuple[float, float]:
        x, y, width, height = self.boxes[name]
        points = {
            "left": (x, y + height / 2), "right": (x + width, y + height / 2),
            "top": (x + width / 2, y + height), "bottom": (x + width / 2, y),
        }  # fmt: skip
        return points[side]


def streams(theme: str) -> Canvas:
    """Return block reconstruction: the two streams through one block, and the loss between them."""
    canvas = Canvas(theme, 19, 5.2)
    canvas.text(0.2, 4.7, "full-precision stream", pale=True, side="left")
    canvas.text(0.2, 0.35, "quantized stream", pale=True, side="left")
    for y, kind, x, weight, out in (
        (3.3, "plain", r"$X$", r"block $k$,  $W$", r"$Y$"),
        (0.8, "quantized", r"$\tilde X$", r"block $k$,  $\hat W(s_1, S)$", r"$\tilde Y$"),
    ):
        canvas.box(f"before{kind}", 0.2, y, 3.6, "blocks 1 to $k-1$", kind)
        canvas.box(f"input{kind}", 5.0, y, 1.4, x, kind)
        canvas.box(f"block{kind}", 7.6, y, 4.4, weight, kind)
        canvas.box(f"output{kind}", 13.2, y, 1.4, out, kind)
        canvas.arrow(f"before{kind}", f"input{kind}")
        canvas.arrow(f"input{kind}", f"block{kind}")
        canvas.arrow(f"block{kind}", f"output{kind}")
    canvas.box("loss", 15.6, 2.05, 3.2, r"$\| Y - \tilde Y \|^2$", "loss")
    canvas.arrow("outputplain", "loss", "right top")
    canvas.arrow("outputquantized", "loss", "right bottom")
    return canvas


def house(theme: str) -> Canvas:
    """Return the packages and who may import whom."""
    canvas = Canvas(theme, 19, 6.4)
    canvas.box("doors", 0.4, 5.2, 8.6, "run.py  finetune.py  artifact.py", "plain")
    canvas.box("plugins", 10.0, 5.2, 8.6, "hydra_plugins: launchers of a sweep", "plain")
    canvas.box(
        "experiment",
        3.5,
        3.6,
        12.0,
        "experiment: a command line becomes a run and its record",
        "plain",
    )
    canvas.box("tasks", 0.4, 2.0, 8.6, "tasks: data, metric, network", "plain")
    canvas.box("results", 10.0, 2.0, 8.6, "results: records, tables, page", "plain")
    canvas.box("library", 3.5, 0.3, 12.0, "flexround: the library, torch alone", "quantized")
    for source, target in (
        ("doors", "experiment"), ("plugins", "experiment"), ("experiment", "tasks"),
        ("experiment", "results"), ("tasks", "library"), ("results", "library"),
    ):  # fmt: skip
        canvas.arrow(source, target, "bottom top")
    return canvas


def shapes(theme: str) -> Canvas:
    """Return how many weights share one scale under each granularity: a weight [4, 8] in cells."""
    canvas = Canvas(theme, 19, 5.4)
    colours = (
        "#4c72b0",
        "#dd8452",
        "#55a868",
        "#c44e52",
        "#8172b3",
        "#937860",
        "#da8bc3",
        "#8c8c8c",
    )
    for k, (title, group) in enumerate(
        (("per_tensor", lambda r, c: 0), ("per_channel", lambda r, c: r),
         ("per_group, group_size=4", lambda r, c: 2 * r + c // 4))
    ):  # fmt: skip
        left = 0.5 + 6.3 * k
        for row in range(4):
            for column in range(8):
                shape = FancyBboxPatch(
                    (left + 0.68 * column, 3.4 - 0.68 * row), 0.6, 0.6, linewidth=0,
                    boxstyle="round,pad=0,rounding_size=0.06",
                    facecolor=colours[group(row, column) % 8],
                )  # fmt: skip
                canvas.axes.add_patch(shape)
        canvas.text(left + 2.7, 0.7, title)
    canvas.text(
        9.5, 4.8, "a row is an output channel; weights of one colour share a scale", pale=True
    )
    return canvas


DIAGRAMS: dict[str, Callable[[str], Canvas]] = {
    "streams": streams, "house": house, "granularity": shapes,
}  # fmt: skip


def draw(folder: Path = FIGURES) -> list[Path]:
    """Write every diagram for both themes; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(RC):
        for name, diagram in DIAGRAMS.items():
            for theme in INK:
                path = folder / f"{name}-{theme}.svg"
                figure = diagram(theme).figure
                figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
                written.append(path)
    return written
