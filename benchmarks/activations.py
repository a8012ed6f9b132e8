"""Cost of simulated activation quantization in a reconstruction iteration.

`python -m benchmarks.activations` times FlexRound's iterations of one block in QDrop's setting
with and without quantized activations, interleaved, and prints the ratio of the medians.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch.utils.benchmark import Measurement, Timer

from benchmarks.blocks import CASES, Case, reached
from flexround.activations.hooks import Activations
from flexround.activations.schemes import StaticPerTensor
from flexround.attach import attach
from flexround.grid import Grid, PerTensor
from flexround.quantizers.flexround import FlexRound
from flexround.ranges import MinMax
from flexround.reconstruction.checkpoints import NoCheckpoints
from flexround.reconstruction.job import UnitJob
from flexround.reconstruction.learning import learn
from flexround.reconstruction.reconstruction import Reconstruction

ROUNDS, ITERS = 11, 2
QDROP = Reconstruction(
    unit="block", iters=ITERS, lr=1e-4, batch_size=2, schedule="constant", inputs="quant",
    act_steps="together", act_lr=4e-5, act_iters=0, act_inputs="quant",
    quant_prob=0.5, keep_best=False, precision="float32", compile=False,
)  # fmt: skip
STATIC = StaticPerTensor(8, False, 8, 8, kv_bits=None, init_samples=2, ranges_from="quant")


def iterations(case: Case, quantized: bool) -> Callable[[], None]:
    """Return a function that runs ITERS iterations of the case's block."""
    adapter, unit, calls = reached(case)
    setting = replace(QDROP, batch_size=case.batch_size)
    draws = torch.Generator().manual_seed(0)
    grid, ranges = Grid(4, True, PerTensor()), MinMax()
    activations = Activations(adapter.blocks(), STATIC, ranges, draws) if quantized else None
    factory = partial(FlexRound, learn_s1=True, use_s3=True, use_s4=True)
    job = UnitJob(
        setting, adapter, factory, grid, ranges, torch.Generator().manual_seed(0), (), None,
        activations, draws, True, NoCheckpoints(),
    )  # fmt: skip
    targets = unit.output(calls.replay_all(unit.module, case.batch_size, adapter.device))
    quantizers = attach(unit.layers, factory, grid, ranges)
    steps = job.init_activation_ranges(unit, calls) if quantized else []
    return lambda: learn(job, unit, quantizers, steps, (calls, calls), targets)


def compare(case: Case) -> tuple[Measurement, Measurement]:
    """Return the times of an iteration (without, with), measured in turns."""
    timers = [
        Timer("run()", globals={"run": iterations(case, quantized)}, num_threads=1)
        for quantized in (False, True)
    ]
    for timer in timers:
        timer.timeit(1)
    turns = [[timer.timeit(1) for timer in timers] for _ in range(ROUNDS)]
    without, with_them = (Measurement.merge(list(side))[0] for side in zip(*turns, strict=True))
    return without, with_them


def main() -> None:
    """Print the table."""
    print("| block | plain (ms) | quantized (ms) | ratio |\n|---|---|---|---|")
    for case in CASES:
        times = compare(case)
        plain, quantized = (1e3 * time.median / ITERS for time in times)
        print(f"| {case.name} | {plain:.1f} | {quantized:.1f} | {quantized / plain:.2f} |")


if __name__ == "__main__":
    main()
