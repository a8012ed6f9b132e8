"""Objectives of every layer in a solver's records: where its search started and ended.

`python -m benchmarks.objectives --results-dir DIR` prints a line a run: in how many layers
objective(found) <= objective(start) <= objective(round-to-nearest on the same scales), and by how
much they fall. Under quant=cdquant the start is what quant.start= says.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from results.records.store import Store


def line(objectives: Sequence[Sequence[float]]) -> str:
    """Return the counts of one run's layers, each (round-to-nearest, start, ..., found)."""
    rounded, start, found = ([o[i] for o in objectives] for i in (0, 1, -1))
    cells = [str(len(objectives))]
    for after, before in ((start, rounded), (found, start)):
        strictly = sum(a < b for a, b in zip(after, before, strict=True))
        at_most = sum(a <= b * (1 + 1e-9) for a, b in zip(after, before, strict=True))
        fall = median(a / b for a, b in zip(after, before, strict=True))
        cells += [f"{at_most} ({strictly})", f"{fall:.3f}"]
    return " | ".join(cells)


def main() -> None:
    """Print the table of the records in a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results-dir", type=Path, required=True)
    print("| run | layers | start <= rtn (<) | median | found <= start (<) | median |")
    print("|---|---|---|---|---|---|")
    for record in Store(parser.parse_args().results_dir).load():
        objectives = [o for block in record.blocks for o in block["objectives"].values()]
        if objectives:
            group = record.settings["granularity"].get("group_size", "-")
            name = f"{record.model} {record.quant} W{record.bits} group {group}"
            print(f"| {name} | {line(objectives)} |")


if __name__ == "__main__":
    main()
