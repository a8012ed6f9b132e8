"""Where CDQuant starts, beside GPTQ on the same ranges: output errors of a real layer set.

`python -m benchmarks.starts --data-dir DIR` prints, for k_proj, o_proj and down_proj of a block of
SmolLM2-135M and DIR's WikiText2, the mean squared error of an output vector, summed over its
entries, on the sequences that the Hessian has seen and on those held out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.layer_set import RealLayer, layer_set, parser_of
from flexround.grid import Grid, PerChannel, QuantizedTensor
from flexround.ranges import MinMax
from flexround.solvers.base import Solver
from flexround.solvers.cdquant import CDQuant
from flexround.solvers.gptq import GPTQ
from flexround.solvers.weight_clipping import Scales, scales_of


def gptq(scales: Scales) -> GPTQ:
    """Return conf/quant/gptq.yaml's solver."""
    return GPTQ(128, 0.01, False, False, False, scales)


SOLVERS: dict[str, Solver] = {
    "gptq": gptq("ranges"),
    "gptq, owc scales": gptq("owc"),
    "cdquant from rtn": CDQuant("rtn", "cyclic", 20, 0, gptq("ranges")),
    "cdquant from owc": CDQuant("owc", "cyclic", 20, 0, gptq("ranges")),
    "cdquant from gptq": CDQuant("gptq", "cyclic", 20, 0, gptq("ranges")),
    "cdquant from gptq, owc scales": CDQuant("gptq", "cyclic", 20, 0, gptq("owc")),
}


def error(weight: Tensor, found: QuantizedTensor, inputs: Tensor) -> float:
    """Return the mean over inputs [vectors, in] of the squared error of an output vector."""
    return (inputs @ (found.dequantize() - weight).T).square().sum(1).mean().item()


def rows(layer: RealLayer, grid: Grid) -> dict[str, tuple[float, float]]:
    """Return (error on what was seen, error held out) of layer by each solver."""
    seen, held_out = layer.seen(), layer.held_out()
    hessian = (2 / len(seen) * seen.T @ seen).double()[None]
    found = {name: s.quantize(layer.weight, hessian, grid, MinMax()) for name, s in SOLVERS.items()}
    for name, kind in (("rtn", "ranges"), ("rtn, owc scales", "owc")):
        scale, zero = scales_of(layer.weight, hessian, grid, MinMax(), kind)  # type: ignore[arg-type]
        codes = grid.encode(grid.granularity.group(layer.weight), scale, zero)
        found[name] = QuantizedTensor(codes.view(layer.weight.shape), scale, zero, grid)
    return {
        name: (error(layer.weight, q, seen), error(layer.weight, q, held_out))
        for name, q in found.items()
    }


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=[3])
    options = parser.parse_args()
    torch.set_num_threads(1)
    layers = layer_set(options.data_dir, options.block, options.sequences, options.tokens)
    for bits in options.bits:
        grid = Grid(bits, False, PerChannel())
        tables = [rows(layer, grid) for layer in layers]
        print(f"| W{bits} | " + " | ".join(layer.name.split(".")[-1] for layer in layers) + " |")
        print("|---" * (len(layers) + 1) + "|")
        for name in sorted(tables[0]):
            cells = [f"{held:.2f} ({seen:.2f})" for seen, held in (t[name] for t in tables)]
            print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
