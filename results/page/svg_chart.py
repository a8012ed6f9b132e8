"""Chart of a metric against bits, one line a method, as marks of an SVG picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from results.tables.leaderboard import mean_text

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 14, 40
LOG_FROM = 50.0  # largest value over smallest from which a lower-is-better metric gets a log axis
MOST_TICKS = 6


@dataclass(frozen=True)
class Value:
    """What one cell of the leaderboard found.

    Attributes:
        bits: of the weights, the place on the horizontal axis.
        std: over seeds; 0 where there is one.
        text: what a pointer resting on the mark is told.
    """

    bits: int
    mean: float
    std: float
    text: str


@dataclass(frozen=True)
class Series:
    """A line: a method under one set of the other settings that tell cells apart.

    Attributes:
        style: number of the method, which has one colour and one mark on the whole page.
        dash: number of the variant of that method in this plot.
    """

    label: str
    method: str
    style: int
    dash: int
    values: Sequence[Value]


@dataclass(frozen=True)
class Mark:
    """A value's place; its error bar goes from top to bottom."""

    x: float
    y: float
    top: float
    bottom: float
    text: str


@dataclass(frozen=True)
class Line:
    """A series with its places, by rising bits."""

    series: Series
    marks: Sequence[Mark]

    @property
    def points(self) -> str:
        """The corners of its polyline."""
        return " ".join(f"{mark.x:.1f},{mark.y:.1f}" for mark in self.marks)


@dataclass(frozen=True)
class Scale:
    """The vertical axis.

    Attributes:
        ticks: (value, text), the first at the bottom.
    """

    low: float
    high: float
    log: bool
    ticks: Sequence[tuple[float, str]]

    def y(self, value: float) -> float:
        """Return the place of value; beyond the axis is at its end."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - at) / (high - low)


@dataclass(frozen=True)
class Chart:
    """A plot, placed.

    Attributes:
        note: the settings that all lines have in common.
        bits: (place, text) of each bit width.
        fp: place of the full-precision value, None where it is not known.
    """

    model: str
    note: str
    scale: Scale
    bits: Sequence[tuple[float, str]]
    lines: Sequence[Line]
    fp: float | None


def charts(
    rows: Sequence[dict[str, Any]], apart: Sequence[str], styles: dict[str, int], better: bool
) -> list[Chart]:
    """Return a plot for each model that has a value.

    rows are one task's in the leaderboard with their width as text; apart are the settings that may
    tell its rows apart, styles the number of each method.
    """
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model and row["n"]]
        if not own:
            continue
        settings = [_settings(row, apart) for row in own]
        common = [told for told in settings[0] if all(told in other for other in settings)]
        lines: dict[str, dict[str, list[Value]]] = {}
        for row, told in zip(own, settings, strict=True):
            variant = " ".join([row["quant"], *(part for part in told if part not in common)])
            std = row["std"] if row["n"] > 1 else 0.0
            value = Value(row["bits"], row["mean"], std, f"{row['width']}: {mean_text(row)}")
            lines.setdefault(row["quant"], {}).setdefault(variant, []).append(value)
        series = [
            Series(label, quant, styles[quant], dash, values)
            for quant, variants in lines.items()
            for dash, (label, values) in enumerate(variants.items())
        ]
        fps = [row["fp"] for row in own if math.isfinite(row["fp"])]
        fp = fmean(fps) if fps else None
        found.append(chart(model, ", ".join(common), series, fp, better))
    return found


def _settings(row: dict[str, Any], apart: Sequence[str]) -> list[str]:
    """Return what may tell a line from the others of its method."""
    acts = [] if pd.isna(row["act_bits"]) else [f"A{row['act_bits']:.0f}"]
    return [*acts, *(f"{name}={row[name]}" for name in apart if row[name] != "-")]


def chart(
    model: str, note: str, series: Sequence[Series], fp: float | None, higher_is_better: bool
) -> Chart:  # fmt: skip
    """Return where the values of one task and model lie."""
    values = [v for s in series for v in s.values]
    ends = [v.mean + side * v.std for v in values for side in (-1, 1)]
    scale = _scale(
        [*ends, *([] if fp is None else [fp])], [v.mean for v in values], higher_is_better
    )
    widths = sorted({v.bits for v in values})
    gap = (WIDTH - LEFT - RIGHT) / len(widths)
    place = {bits: LEFT + gap * (index + 0.5) for index, bits in enumerate(widths)}
    # Values that are alike stand side by side: three methods at full precision are three marks.
    step = min(gap * 0.7 / len(series), 24 if len(widths) == 1 else 5)
    lines = []
    for index, one in enumerate(series):
        aside = (index - (len(series) - 1) / 2) * step
        marks = [
            Mark(
                place[v.bits] + aside, scale.y(v.mean),
                scale.y(v.mean + v.std), scale.y(v.mean - v.std), v.text,
            )
            for v in sorted(one.values, key=lambda v: v.bits)
        ]  # fmt: skip
        lines.append(Line(one, marks))
    texts = [(x, f"W{bits}") for bits, x in place.items()]
    return Chart(model, note, scale, texts, lines, None if fp is None else scale.y(fp))


def _scale(ends: Sequence[float], means: Sequence[float], higher_is_better: bool) -> Scale:
    low, high = min(ends), max(ends)
    if not higher_is_better and min(means) > 0 and high / min(means) > LOG_FROM:
        # An error bar that reaches 0 does not stretch the axis.
        return _log_scale(max(low, min(means) / 2), high)
    # Values that differ by rounding alone would have ticks no further apart than rounding.
    step = _step(high - low if high - low > 1e-9 * abs(high) else abs(high) or 1.0)
    first, last = math.floor(low / step), math.ceil(high / step)
    last += first == last
    ticks = [(n * step, f"{n * step:.10g}") for n in range(first, last + 1)]
    return Scale(ticks[0][0], ticks[-1][0], False, ticks)


def _step(span: float) -> float:
    """Return a round distance of ticks, of which four or so cover span."""
    unit = 10.0 ** math.floor(math.log10(span / 4))
    return next(unit * n for n in (1, 2, 2.5, 5, 10) if unit * n >= span / 4 * 0.999)


def _log_scale(low: float, high: float) -> Scale:
    low, high = low / 1.2, high * 1.2
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    if len(powers) > 2:
        values = [10.0**n for n in powers[:: math.ceil(len(powers) / MOST_TICKS)]]
    else:
        all_powers = range(powers.start - 1, powers.stop + 1)
        values = [v for n in all_powers for f in (1, 2, 5) if low <= (v := f * 10.0**n) <= high]
    return Scale(low, high, True, [(value, _short(value)) for value in values])


def _short(value: float) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e5 else f"{value:.0e}".replace("e+0", "e")
