"""Shifts of saved runs' codes from round-to-nearest, as `python -m results plot shift` draws them.

Figures 3 to 6 of FlexRound (arXiv 2306.00317): a row a layer, a column a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context

from experiment.artifacts.original import integers_of, run_called, weights_of
from flexround.structure import fitting
from results.plots import write
from results.plots.shift import Shift, panels
from results.plots.style import COLOURS, RC
from results.records.record import Record
from results.records.store import Store

MOST_PANELS, MOST_NAMES = 60, 12
# What tells runs of one method apart, in the order that it is tried, and how it is told.
APART = ("model", "bits", "seed", "run_id")
TOLD = {"bits": "W{}", "seed": "seed {}"}


def draw(
    folder: Path, names: Sequence[str], patterns: Sequence[str], overrides: Sequence[str], out: Path
) -> list[Path]:
    """Write the picture of `shifts` to out, a file or a folder, and return the paths.

    Raises:
        ValueError: as `shifts` does; when it can't be written.
    """
    if not folder.is_dir():
        raise ValueError(
            f"--results-dir {folder}: give the folder of the runs' records, beside which their "
            "integers lie"
        )
    found = shifts(folder, names, patterns, overrides)
    with rc_context(RC):
        several = len(names) > 1
        drawn = panels(found, len(names), COLOURS[1:]) if several else panels(found)
    return write({"shift": drawn}, out)


def shifts(
    folder: Path, names: Sequence[str], patterns: Sequence[str], overrides: Sequence[str]
) -> dict[str, Shift]:
    """Return the shift of each layer in each run by title: the first layer of all runs first.

    Raises:
        ValueError: when a run, a layer or a run's integers are not there.
    """
    store = Store(folder)
    runs = [run_called(store, name) for name in names]
    held = {run.run_id: integers_of(store, run).layers for run in runs}
    if len(held) < len(names):
        raise ValueError(f"--run: {' and '.join(names)} are {len(held)} runs; give each once")
    rows = layers_of({name: list(layers) for name, layers in held.items()}, patterns)
    if len(rows) * len(runs) > MOST_PANELS:
        raise ValueError(
            f"--layer: {len(rows)} layers of {len(runs)} runs; a picture holds {MOST_PANELS}"
        )
    weights = {
        run.run_id: weights_of(run, names, overrides)
        for run, names in zip(runs, zip(*rows, strict=True), strict=True)
    }
    found = {}
    for row in rows:
        for layer, label, run in zip(row, labels(runs), runs, strict=True):
            integers = held[run.run_id][layer]
            title = f"{label}, {layer} ({integers.grid.bits} bit)"
            found[title] = Shift.of(weights[run.run_id][layer], integers)
    return found


def layers_of(runs: Mapping[str, Sequence[str]], patterns: Sequence[str]) -> list[tuple[str, ...]]:
    """Return rows of layers that patterns fit, one of each run; runs are layers' names by run.

    Raises:
        ValueError: when a pattern fits nothing, or fits more in one run than in another.
    """
    if not patterns:
        name, layers = next(iter(runs.items()))
        rest = len(layers) - MOST_NAMES
        more = f" and {rest} more" if rest > 0 else ""
        raise ValueError(f"give --layer; run {name} has {', '.join(layers[:MOST_NAMES])}{more}")
    every = list(dict.fromkeys(name for layers in runs.values() for name in layers))
    wanted = {name for pattern in patterns for name in fitting(every, pattern, "--layer")}
    chosen = {run: [name for name in layers if name in wanted] for run, layers in runs.items()}
    counts = {run: len(layers) for run, layers in chosen.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{run} has {count}" for run, count in counts.items())
        raise ValueError(
            f"--layer: runs beside each other need as many layers each, and {told} of these"
        )
    return list(zip(*chosen.values(), strict=True))


def labels(runs: Sequence[Record]) -> list[str]:
    """Return what each run is called: its method, and what else tells it from the others."""
    differing = [name for name in APART if len({getattr(run, name) for run in runs}) > 1]
    found: list[str] = []
    for name in ("quant", *differing):
        if len(set(found)) < len(runs):
            parts = [TOLD.get(name, "{}").format(getattr(run, name)) for run in runs]
            found = [", ".join(pair) for pair in zip(found, parts, strict=True)] if found else parts
    return found
