"""Error of a range that is searched on a sample of an activation's elements.

`python -m benchmarks.range_samples` makes 1024 tokens of 4096 Gaussian channels, 8 of which are 30
times as large, and prints the step size over that of a search over all 2^22 elements: of every 16th
element, of 2^18 random ones, both with the ends added, and as the quantizers draw theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flexround.activations.quantizers import TensorQuantizer
from flexround.grid import Grid, PerTensor
from flexround.ranges import LpSearch

TOKENS, HIDDEN, EVERY, FACTOR = 1024, 4096, 512, 30.0
STRIDE, SEEDS = 16, 3
SEARCH = LpSearch(2.4, 80, 0.01)


def searched(values: Tensor, grid: Grid) -> float:
    """Return the step size of a search over values."""
    scale, _ = SEARCH(values.reshape(1, -1), grid)
    return scale.item()


def drawn(x: Tensor, grid: Grid, seed: int) -> float:
    """Return the step size that a quantizer of x starts with."""
    quantizer = TensorQuantizer("x", grid.bits, grid.symmetric, SEARCH)
    quantizer(x, 1.0, torch.Generator().manual_seed(seed))
    return quantizer.scale.item()


def main() -> None:
    """Print the table."""
    scales = torch.ones(HIDDEN)
    scales[7::EVERY] = FACTOR
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(0)) * scales
    flat, ends = x.flatten(), torch.stack(x.aminmax())
    print("| codes | stride, ends added | random, ends added | as drawn here |\n|---|---|---|---|")
    for bits in (4, 8):
        for symmetric in (True, False):
            grid = Grid(bits, symmetric, PerTensor())
            draws = [torch.Generator().manual_seed(seed) for seed in range(SEEDS)]
            some = [flat[torch.randint(len(flat), (1 << 18,), generator=own)] for own in draws]
            columns = [
                [searched(torch.cat([flat[::STRIDE], ends]), grid)],
                [searched(torch.cat([values, ends]), grid) for values in some],
                [drawn(x, grid, seed) for seed in range(SEEDS)],
            ]
            full = searched(flat, grid)
            cells = [" ".join(f"{scale / full:.2f}" for scale in column) for column in columns]
            kind = "symmetric" if symmetric else "asymmetric"
            print(f"| {bits} bits, {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
