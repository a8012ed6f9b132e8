"""Overhead of a reconstruction iteration above the block's own forward and backward pass.

`python -m benchmarks.reconstruction` prints, for each block, the floor (the plain block's passes,
with gradients of its weights), each method's iteration, its overhead (iteration - floor) / floor,
and the same for FlexRound's equation written plainly with torch.optim.Adam. All are measured in
turns; medians of the rounds with the quartiles' distance. `--compile` and `--precision bfloat16`
are the loop's options, under which the floor stays as it is; `--frozen` times the block's forward
pass before a run and after it.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import get_args

import torch
from torch import nn
from torch.nn.utils import parametrize

from benchmarks.blocks import CASES, CPU, Case, reached
from benchmarks.plain import Plain
from benchmarks.timing import STEPS, Clock, Run, measured, timed
from flexround.attach import attach, freeze
from flexround.grid import Grid, PerChannel
from flexround.models.base import ModelAdapter
from flexround.quantizers.adaround import AdaRound
from flexround.quantizers.base import QuantizerFactory
from flexround.quantizers.flexround import FlexRound
from flexround.quantizers.lrq import LRQ
from flexround.quantizers.signround import SignRound
from flexround.ranges import MinMax
from flexround.reconstruction.callbacks import Callback
from flexround.reconstruction.checkpoints import NoCheckpoints
from flexround.reconstruction.job import UnitJob
from flexround.reconstruction.learning import learn
from flexround.reconstruction.precision import Precision
from flexround.reconstruction.reconstruction import Reconstruction
from flexround.reconstruction.unit import reconstruction_loss

GRID, LR = Grid(4, False, PerChannel()), 1e-3
METHODS: dict[str, QuantizerFactory] = {
    "flexround": partial(FlexRound, learn_s1=True, use_s3=True, use_s4=True),
    "adaround": partial(
        AdaRound, reg_weight=0.01, beta_start=20.0, beta_end=2.0, warmup=0.0, anneal="linear"
    ),
    "lrq": partial(LRQ, rank=64, rank_rule="fixed", seed=0),
    "signround": SignRound,
}


def floor(case: Case, adam: bool = False) -> Run:
    """Return what times the passes of the plain block, weights' gradients and loss included.

    With adam the weights take Adam's steps, too.
    """
    _, unit, calls = reached(case)
    batch = torch.arange(case.batch_size)
    targets = torch.zeros_like(unit.output(calls.replay_all(unit.module, case.batch_size, CPU)))
    weights = [layer.module.weight for layer in unit.layers]

    unit.module.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(weights, lr=LR, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        output = unit.output(calls.replay(unit.module, batch, CPU))
        reconstruction_loss(output, targets[batch], unit.channel_dim).backward()
        if adam:
            optimizer.step()

    return timed(step)


def loop(iters: int, batch_size: int, precision: Precision, compile_: bool) -> Reconstruction:
    """Return the loop as it is measured."""
    return Reconstruction(
        unit="block", iters=iters, lr=LR, batch_size=batch_size, schedule="constant",
        inputs="quant", act_steps="start", act_lr=1e-4, act_iters=0,
        act_inputs="quant", quant_prob=1.0, keep_best=False, precision=precision, compile=compile_,
    )  # fmt: skip


def job_of(
    recon: Reconstruction,
    adapter: ModelAdapter,
    method: QuantizerFactory,
    grid: Grid,
    callback: Callback,
) -> UnitJob:
    """Return the fixed parts of a loop over adapter's blocks without activations and padding."""
    return UnitJob(
        settings=recon, adapter=adapter, quantizer=method, grid=grid, ranges=MinMax(),
        generator=torch.Generator().manual_seed(0), callbacks=[callback], mask=None,
        activations=None, drop_generator=torch.Generator(adapter.device).manual_seed(0),
        learns=True, checkpoints=NoCheckpoints(),
    )  # fmt: skip


def ours(case: Case, method: QuantizerFactory, precision: Precision, compile_: bool) -> Run:
    """Return what times the loop's iterations."""
    adapter, unit, calls = reached(case)
    recon, clock = loop(STEPS + 1, case.batch_size, precision, compile_), Clock()
    job = job_of(recon, adapter, method, GRID, clock)
    targets = unit.output(calls.replay_all(unit.module, case.batch_size, CPU))
    quantizers = attach(unit.layers, method, GRID, MinMax())

    def run() -> float:
        learn(job, unit, quantizers, [], (calls, calls), targets)
        return clock.seconds()

    return run


def plain(case: Case, method: str) -> Run:
    """Return what times the method's plain equation with torch's autograd and its default Adam."""
    _, unit, calls = reached(case)
    targets = unit.output(calls.replay_all(unit.module, case.batch_size, CPU))
    learned: list[nn.Parameter] = []
    for layer in unit.layers:
        weight = layer.module.weight
        quantizer = METHODS[method](weight, grid=GRID, ranges=MinMax())
        learned += quantizer.parameters()
        parametrize.register_parametrization(layer.module, "weight", Plain(quantizer))
    unit.module.requires_grad_(False)
    for parameter in learned:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(learned, lr=LR)
    draws = torch.Generator().manual_seed(0)

    def step() -> None:
        batch = torch.randperm(len(calls), generator=draws)[: case.batch_size]
        optimizer.zero_grad()
        output = unit.output(calls.replay(unit.module, batch, CPU))
        loss = reconstruction_loss(output, targets[batch], unit.channel_dim)
        loss.backward()
        optimizer.step()

    return timed(step)


def methods_of(case: Case) -> dict[str, QuantizerFactory]:
    """Return the methods that the case's layers allow: LRQ is for linear ones."""
    return {name: m for name, m in METHODS.items() if name != "lrq" or not case.vision}


def forward(case: Case, frozen: bool) -> Run:
    """Return what times the block's forward pass as it came, or quantized and frozen."""
    _, unit, calls = reached(case)
    if frozen:
        attach(unit.layers, METHODS["flexround"], GRID, MinMax())
        freeze(unit.layers)

    return timed(lambda: calls.replay_all(unit.module, case.batch_size, CPU))


def table(case: Case, runs: dict[str, Run], rounds: int) -> None:
    """Print the rows of one block; the first of runs is what the others are divided by."""
    times = measured(runs, rounds)
    base = next(iter(times.values())).median
    for name, time_ in times.items():
        over = f"{time_.median / base - 1:.3f}"
        spread = f"{1e3 * time_.median:.1f} ({1e3 * time_.iqr:.1f})"
        print(f"| {case.name} | {name} | {spread} | {over} |", flush=True)


def _runs(case: Case, args: argparse.Namespace) -> dict[str, Run]:
    if args.frozen:
        return {"as it came": forward(case, False), "frozen": forward(case, True)}
    runs = {"floor": floor(case)}
    for name, method in methods_of(case).items():
        if name in args.methods:
            runs[name] = ours(case, method, args.precision, args.compile)
    if "flexround" in args.methods:
        runs["flexround, plain"] = plain(case, "flexround")
    return runs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="", help="only blocks whose name holds this")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--precision", choices=[p for p in get_args(Precision) if p != "auto"], default="float32"
    )
    parser.add_argument("--frozen", action="store_true")
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {args.rounds} rounds of {STEPS} iterations\n")
    print("| block | | ms (quartiles) | overhead |\n|---|---|---|---|")
    for case in CASES:
        if args.case in case.name:
            table(case, _runs(case, args), args.rounds)


if __name__ == "__main__":
    main()
