"""The solvers' time against their algorithms written plainly, on a layer of SmolLM2's shape.

`python -m benchmarks.solvers` takes the two in turns and prints the ratio of the medians. The plain
coordinate descent is timed on a few rows and counted for all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.benchmark import Measurement, Timer

from benchmarks import plain
from flexround.grid import Grid, PerChannel
from flexround.ranges import MinMax
from flexround.solvers.cdquant import CDQuant
from flexround.solvers.gptq import GPTQ

OUT, IN, TOKENS, ROUNDS, ROWS = 576, 1536, 4096, 5, 2
SOLVER = GPTQ(128, 0.01, False, False, False, "ranges")


def in_turns(*runs: Callable[[], object]) -> list[Measurement]:
    """Return the times of each of runs, measured in turns after one run to warm up."""
    threads = torch.get_num_threads()
    timers = [Timer("run()", globals={"run": run}, num_threads=threads) for run in runs]
    for timer in timers:
        timer.timeit(1)
    turns = [[timer.timeit(1) for timer in timers] for _ in range(ROUNDS)]
    return [Measurement.merge(list(side))[0] for side in zip(*turns, strict=True)]


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    weight = torch.randn(OUT, IN) * 0.05
    inputs = torch.randn(TOKENS, 64) @ torch.randn(64, IN) + 0.3 * torch.randn(TOKENS, IN)
    hessian = (2 / TOKENS) * (inputs.T @ inputs).double()
    grid = Grid(4, False, PerChannel())
    scale, zero = MinMax()(weight, grid)
    rounded = (grid.encode(weight, scale, zero) - zero) * scale
    exact = [t.double() for t in (weight, rounded, hessian, scale, zero)]
    cyclic = CDQuant("rtn", "cyclic", 1, 0, SOLVER)
    few = [exact[0][:ROWS], exact[1][:ROWS], exact[2], exact[3][:ROWS], exact[4][:ROWS]]
    rows = (
        (
            "GPTQ", 1,
            lambda: SOLVER.quantize(weight, hessian[None], grid, MinMax()),
            lambda: plain.gptq(weight, hessian, scale, zero, grid.qmax, 128, 0.01),
        ),
        (
            "CDQuant, one cyclic sweep", OUT // ROWS,
            lambda: cyclic.quantize(weight, hessian[None], grid, MinMax()),
            lambda: plain.cyclic_descent(*few, grid.qmax),
        ),
    )  # fmt: skip
    print("| solver | ours (s) | plain (s) | ours / plain |\n|---|---|---|---|")
    for name, times, ours, theirs in rows:
        own, other = (measured.median for measured in in_turns(ours, theirs))
        print(f"| {name} | {own:.3f} | {other * times:.3f} | {own / (other * times):.4f} |")


if __name__ == "__main__":
    main()
