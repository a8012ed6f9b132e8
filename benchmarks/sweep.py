"""Overhead of a whole run of reconstruction above its iterations' own passes.

`python -m benchmarks.sweep` quantizes whole networks of random weights, every unit of them, and
prints the seconds of the run beside the floor: as many forward and backward passes of each plain
block as the run has iterations. What lies between are the methods' passes and what a run does
outside of its iterations: ranges, both streams, the errors before and after.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.blocks import CASES, CPU, Case
from benchmarks.reconstruction import GRID, METHODS, floor, loop
from benchmarks.timing import summary
from flexround.ranges import LpSearch
from flexround.reconstruction.report import BlockReport


class Iterations:
    """An callback that adds up the seconds of the iterations."""

    def __init__(self) -> None:
        self.seconds, self._last = 0.0, 0.0

    def begin(self, units: Sequence[str], iters: int) -> None:
        """Nothing to do."""

    def step(self, unit: str, iteration: int, error: float) -> None:
        """Add the time since the unit's last reading."""
        now = time.perf_counter()
        if iteration:
            self.seconds += now - self._last
        self._last = now

    def end_block(self, report: BlockReport) -> None:
        """Nothing to do."""


def run(case: Case, iters: int) -> tuple[float, float]:
    """Quantize the case's whole network by FlexRound; return the seconds, and the iterations'."""
    adapter, calibration = case.make(CPU)
    iterations = Iterations()
    start = time.perf_counter()
    loop(iters, case.batch_size, "float32", False)(
        adapter, calibration, quantizer=METHODS["flexround"], grid=GRID,
        ranges=LpSearch(2.4, 80, 0.01), generator=torch.Generator().manual_seed(0),
        callbacks=[iterations],
    )  # fmt: skip
    return time.perf_counter() - start, iterations.seconds


def table(case: Case, iters: int, rounds: int) -> None:
    """Print the row of the case's network."""
    adapter, _ = case.make(CPU)
    blocks = [floor(replace(case, block=index)) for index in range(len(adapter.blocks()))]
    turns = [
        (sum(block() for block in blocks) * iters, *run(case, iters)) for _ in range(rounds + 1)
    ][1:]  # after one to warm up
    passes, whole, inside = (summary(times).median for times in zip(*turns, strict=True))
    network = case.name.split(",")[0].removesuffix(" layer")
    print(
        f"| {network} | {passes:.1f} | {inside:.1f} | {whole:.1f} | {whole / passes - 1:.3f} |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="", help="only networks whose name holds this")
    parser.add_argument("--iters", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {args.iters} iterations a unit\n")
    print("| network | floor, s | iterations, s | whole run, s | overhead |\n|---|---|---|---|---|")
    seen = set()
    for case in CASES:
        network = case.name.split(",")[0]
        if args.case in network and network not in seen:
            table(case, args.iters, args.rounds)
        seen.add(network)


if __name__ == "__main__":
    main()
