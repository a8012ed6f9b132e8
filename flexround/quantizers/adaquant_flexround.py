"""AdaQuant's shift and FlexRound's division together (arXiv 2306.00317, appendix F, Table 11).

The paper gives no formula; this is the one in which either part alone is its own method.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flexround.grid import Grid
from flexround.quantizers.base import WeightQuantizer
from flexround.quantizers.flexround import FlexRound
from flexround.ranges import Ranges


class AdaQuantFlexRound(FlexRound):
    """W_hat = s1 * round((W + V) / (s1 * S2 * s3 * s4)), V [out, in, *kernel] starting at zero."""

    def __init__(
        self,
        weight: Tensor,
        *,
        grid: Grid,
        ranges: Ranges,
        learn_s1: bool,
        use_s3: bool,
        use_s4: bool,
        lr_v: float,
    ) -> None:
        super().__init__(
            weight, grid=grid, ranges=ranges, learn_s1=learn_s1, use_s3=use_s3, use_s4=use_s4
        )
        self.lr_v = lr_v
        self.v = nn.Parameter(weight.detach().new_zeros(weight.shape))

    def rescale(self, weight: Tensor) -> Tensor:
        """Return (W + V) / (S2 * s3 * s4), [out, in, *kernel]."""
        logs = [log for log in (self.log_s2, self.log_s3, self.log_s4) if log is not None]
        out: Tensor = (weight + self.v) * torch.exp(-sum(logs[1:], logs[0]))
        return out

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized weight, same shape."""
        return WeightQuantizer.forward(self, weight)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return one group for V, in units of the weight, and one for the rest."""
        rest = [p for p in self.parameters() if p.requires_grad and p is not self.v]
        return [{"params": [self.v], "lr": self.lr_v}, {"params": rest, "lr": lr}]
