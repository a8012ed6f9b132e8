"""How far learning has moved each weight's code from round-to-nearest.

FlexRound (arXiv 2306.00317, Figures 3 to 6) draws it against |W|: AdaRound moves a code by one at
most, FlexRound a large weight by several.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flexround.grid import QuantizedTensor


def grid_shift(weight: Tensor, integers: QuantizedTensor) -> Tensor:
    """Return codes minus those of round-to-nearest on the same scale and zero point.

    weight is the full-precision one as [out, in, *kernel]; so is the result, int64.

    Raises:
        ValueError: when the shapes differ.
    """
    if weight.shape != integers.codes.shape:
        raise ValueError(
            f"weight {list(weight.shape)} and codes {list(integers.codes.shape)} are not of one "
            "layer; both are [out, in, *kernel] (a Conv1D's weight is the transpose)"
        )
    grid = integers.grid
    rows = grid.granularity.group(weight.detach().to(integers.scale))
    nearest = grid.encode(rows, integers.scale, integers.zero_point).reshape(weight.shape)
    return integers.codes.to(torch.int64) - nearest.to(torch.int64)
