"""Grids side by side on real layers: output errors of round-to-nearest, learned rounding and GPTQ.

`python -m benchmarks.grids --data-dir DIR` prints, for k_proj, o_proj and down_proj of a block of
SmolLM2-135M and DIR's WikiText2, the mean squared error of an output vector, summed over its
entries, on sequences that no method has seen.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.layer_set import RealLayer, layer_set, parser_of
from benchmarks.starts import error, gptq
from flexround.grid import Grid, PerGroup, QuantizedTensor
from flexround.levels import BY_NAME
from flexround.quantizers.adaround import AdaRound
from flexround.quantizers.base import QuantizerFactory
from flexround.quantizers.flexround import FlexRound
from flexround.quantizers.rtn import RTN
from flexround.quantizers.signround import SignRound
from flexround.ranges import MinMax
from flexround.reconstruction.optimize import BestParameters, UnitOptimizer, scheduled
from flexround.reconstruction.unit import reconstruction_loss

# With the rates of conf/tuned/model/smollm2_135m_*.
METHODS: dict[str, tuple[QuantizerFactory, float]] = {
    "rtn": (RTN, 0.0),
    "adaround": (
        partial(AdaRound, reg_weight=1e-4, beta_start=20.0, beta_end=2.0, warmup=0.2,
                anneal="linear"),
        5e-2,
    ),
    "flexround": (partial(FlexRound, learn_s1=True, use_s3=True, use_s4=True), 1e-2),
    "signround": (SignRound, 2e-2),
}  # fmt: skip


def learned(name: str, layer: RealLayer, grid: Grid, iters: int) -> QuantizedTensor:
    """Return what the method called name finds for layer in mini-batches of two sequences."""
    factory, lr = METHODS[name]
    quantizer, weight = factory(layer.weight, grid=grid, ranges=MinMax()), layer.weight
    groups = quantizer.param_groups(lr)
    if groups:
        inputs = layer.inputs[: len(layer.inputs) * 3 // 4]
        targets = inputs @ weight.T

        def losses(batch: Tensor, progress: float) -> tuple[Tensor, Tensor]:
            output = inputs[batch] @ quantizer(weight).T
            own = reconstruction_loss(output, targets[batch], -1)
            return own, own + quantizer.regularizer(progress)

        schedule = "linear" if name == "signround" else "cosine"
        params = [p for group in groups for p in group["params"]]
        best = BestParameters(params) if name == "signround" else None
        draws = torch.Generator().manual_seed(0)
        UnitOptimizer(layer.name, iters, 2, draws, []).run(
            len(inputs), losses, [scheduled(quantizer.optimizer(groups), schedule, iters)],
            quantizer.after_step, best,
        )  # fmt: skip
    quantizer.harden()
    return quantizer.finalize(weight)


def rows(layer: RealLayer, grid: Grid, iters: int) -> dict[str, float]:
    """Return the error of layer by each method on what none has seen."""
    seen = layer.seen()
    hessian = (2 / len(seen) * seen.T @ seen).double()[None]
    found = {name: learned(name, layer, grid, iters) for name in METHODS}
    found["gptq"] = gptq("ranges").quantize(layer.weight, hessian, grid, MinMax())
    return {name: error(layer.weight, own, layer.held_out()) for name, own in found.items()}


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--iters", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    layers = layer_set(options.data_dir, options.block, options.sequences, options.tokens)
    grids = {
        "integer, symmetric": Grid(4, True, PerGroup(64)),
        "integer": Grid(4, False, PerGroup(64)),
        **{
            name: Grid(4, True, PerGroup(kind.block or 64), kind())
            for name, kind in BY_NAME.items()
        },
    }
    names = (*METHODS, "gptq")
    head = [f"{layer.name.split('.')[-1]} {name}" for layer in layers for name in names]
    print("| grid | " + " | ".join(head) + " |")
    print("|---" * (len(head) + 1) + "|")
    for name, grid in grids.items():
        tables = [rows(layer, grid, options.iters) for layer in layers]
        cells = [f"{table[method]:.3f}" for table in tables for method in names]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
