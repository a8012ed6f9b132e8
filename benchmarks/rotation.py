"""What a rotation costs rounding to nearest before it helps: the norms' gains go into the weights.

`python -m benchmarks.rotation --data-dir DIR` prints, for q_proj and gate_proj of every block of
SmolLM2-135M, the output's squared error over its square, median and largest over blocks, on DIR's
WikiText2: of the weights W as they are, of W diag(g) with the RMSNorm's gain g folded in, without
which no rotation passes the norm, and of W diag(g) H, rotated.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import cast

import torch
from torch import Tensor, nn

from experiment.build import build
from experiment.config import composed
from flexround.grid import Grid, PerGroup
from flexround.ranges import MinMax
from flexround.transforms.hadamard_matrices import random_hadamard

READERS = {"self_attn.q_proj": "input_layernorm", "mlp.gate_proj": "post_attention_layernorm"}
WAYS = ("as it is", "gain folded in", "rotated")


def error(weight: Tensor, second_moment: Tensor, grid: Grid) -> float:
    """Return E|dW x|^2 / E|W x|^2 of round-to-nearest for weight [out, in] and E[x x^T]."""
    rows = grid.granularity.group(weight)
    scale, zero = MinMax()(rows, grid)
    moved = grid.nearest(rows, scale, zero).reshape(weight.shape) - weight
    whole, lost = ((part @ second_moment * part).sum() for part in (weight, moved))
    return (lost / whole).item()


def errors(
    weight: Tensor, gain: Tensor, second_moment: Tensor, rotation: Tensor, grid: Grid
) -> list[float]:
    """Return the error of each of WAYS; second_moment is that of the normalised input, before gain.

    weight [out, in], gain [in], second_moment and rotation [in, in], all float64.
    """
    folded = weight * gain
    return [
        error(weight, gain[:, None] * second_moment * gain, grid),
        error(folded, second_moment, grid),
        error(folded @ rotation, rotation.T @ second_moment @ rotation, grid),
    ]


def measured(data_dir: str, sequences: int, grid: Grid) -> dict[str, list[list[float]]]:
    """Return the errors of each block by the reader's name."""
    cfg = composed(["model=smollm2_135m", f"data_dir={data_dir}", "protocol=file"])
    task, model = build(cfg.task), build(cfg.model)
    modules = dict(model.adapter(task, None, torch.device("cpu"), None).model.named_modules())
    norms = {n: m for n, m in modules.items() if n.rpartition(".")[2] in READERS.values()}
    moments: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(norm: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
            values = (out / cast(Tensor, norm.weight)).flatten(0, -2).double()
            moments[name] = moments.get(name, 0) + values.T @ values

        return keep

    for name, norm in norms.items():
        norm.register_forward_hook(hook(name))
    with torch.no_grad():
        for batch in task.calibration(sequences, cfg.seed):
            modules[""](**batch)
    found: dict[str, list[list[float]]] = {reader: [] for reader in READERS}
    for name, moment in moments.items():
        block, _, kind = name.rpartition(".")
        (reader,) = (r for r, norm in READERS.items() if norm == kind)
        weight = modules[f"{block}.{reader}"].weight.detach().double()
        rotation = random_hadamard(len(moment), torch.Generator().manual_seed(0)).double()
        gain = norms[name].weight.detach().double()
        found[reader].append(errors(weight, gain, moment, rotation, grid))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    grid = Grid(options.bits, False, PerGroup(options.group_size))
    print("| layer | " + " | ".join(WAYS) + " |\n|---" + "|---" * len(WAYS) + "|")
    for reader, blocks in measured(options.data_dir, options.sequences, grid).items():
        ways = zip(*blocks, strict=True)
        cells = [f"{median(way):.3f} ({max(way):.3f})" for way in ways]
        print(f"| {reader} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
