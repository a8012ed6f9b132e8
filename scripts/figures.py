"""`make figures`: pictures of README and docs from committed records, for light and dark pages.

Diagrams are drawn by scripts/diagrams.py; what stands here is measured: README's table as lines
over bits (results/readme.jsonl), and how far the codes of real layers have moved from
round-to-nearest (docs/figures/shift.npz, which `--measure` makes again from two runs).
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from experiment import ROOT
from experiment.composer import Composer
from experiment.shift import shifts
from experiment.sweeps.plan import plan
from flexround.utils.atomic_files import write_whole
from results.plots.cells import cells
from results.plots.lines import bits
from results.plots.shift import Shift, panels
from results.plots.style import RC
from scripts.diagrams import FIGURES, INK, PALE, draw
from scripts.readme_tables import KEPT, README, commands, read, records_of

SHIFT = FIGURES / "shift.npz"
LAYERS = ("features.1.conv.0.0", "features.6.conv.1.0")  # Figures 3 and 4: depthwise, block 1 and 6
RUN = "model=mobilenet_v2 task=scattered_digits bits=4 save=true"
# AdaRound moves a weight by one code at most, whatever its schedule.
METHODS = {"adaround": "quant=adaround", "flexround": "quant=flexround recon=fast"}
BINS = 200  # of |W|
COLOURS = {"adaround": "#D55E00", "flexround": "#0072B2"}


def themed(theme: str) -> dict[str, Any]:
    """Return matplotlib's settings for a page of theme."""
    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    grid = {"grid.color": PALE[theme], "grid.alpha": 0.3}
    plain = {"axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none"}
    return {**RC, **dict.fromkeys(ink, INK[theme]), **grid, **plain}


def of_bits() -> Figure:
    """Return README's sweep with seeds over bits: a line a method."""
    (command,) = (c for c in commands(README.read_text()) if "seed=" in c)
    return bits(cells(records_of(command, read(KEPT)), (), None))["bits"]


def of_shift() -> Figure:
    """Return the shift of codes from round-to-nearest against |W|, a panel a layer and method."""
    held = np.load(SHIFT)
    found = {
        f"{method}, {layer}": Shift(*(torch.tensor(held[f"{layer}|{n}"]) for n in ("size", method)))
        for layer in LAYERS
        for method in METHODS
    }
    return panels(found, len(METHODS), list(COLOURS.values()), BINS)


def measure(overrides: Sequence[str]) -> None:
    """Write SHIFT from the integers of METHODS' runs, which are computed where they are not kept.

    overrides are further options of the runs, such as results_dir=PATH.
    """
    held: dict[str, Any] = {}
    for method, chosen in METHODS.items():
        own = [*RUN.split(), *chosen.split(), *overrides]
        subprocess.run([sys.executable, str(ROOT / "run.py"), *own], cwd=ROOT, check=True)
        cfg, _ = Composer().composed(own)
        (run,) = plan(own)
        found = shifts(Path(cfg.results_dir), [run.run_id], LAYERS, overrides)
        for name in LAYERS:
            (own_shift,) = (one for title, one in found.items() if f", {name} (" in title)
            held[f"{name}|{method}"] = own_shift.moved.numpy().astype(np.int8)
            held[f"{name}|size"] = own_shift.sizes.numpy().astype(np.float32)
    file = io.BytesIO()
    np.savez_compressed(file, **held)
    write_whole(SHIFT, file.getvalue())


def figures(folder: Path = FIGURES) -> list[Path]:
    """Write every figure for both themes; return the files."""
    written = draw(folder)
    for theme in INK:
        with mpl.rc_context(themed(theme)):
            for name, make in (("bits", of_bits), ("shift", of_shift)):
                file, path = io.BytesIO(), folder / f"{name}-{theme}.svg"
                make().savefig(file, format="svg", metadata={"Date": None, "Creator": None})
                text = file.getvalue()
                if theme == "dark":  # black is the first of the lines' colours
                    text = text.replace(b"#000000", INK[theme].encode())
                write_whole(path, text)
                written.append(path)
    return written


def main(argv: Sequence[str]) -> None:
    """Draw; with --measure make the data of the shift first."""
    parser = argparse.ArgumentParser(prog="python -m scripts.figures", description=__doc__)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("overrides", nargs="*", help="of the runs that --measure computes")
    args = parser.parse_args(argv)
    if args.measure:
        measure(args.overrides)
    figures()


if __name__ == "__main__":
    main(sys.argv[1:])
