"""AdaQuant's shift and FlexRound's division together (arXiv 2306.00317, appendix F, Table 11).

The paper gives no equation; this is the one in which either part alone is its own method.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flexround.grid import Grid
from flexround.quantizers.flexround import FlexRound
from flexround.ranges import Ranges


class AdaQuantFlexRound(FlexRound):
    """W_hat = s1 * round((W + V) / (s1 * S2 * s3 * s4)): FlexRound of the shifted weight.

    V [out, in, *kernel] starts at zero and has a learning rate of its own, in units of the weight;
    s1, S2, s3 and s4 are FlexRound's.
    """

    def reference(self, weight: Tensor) -> Tensor:
        """Return the equation's W_hat in plain torch operations and autograd, same shape."""
        return super().reference(weight + self.v)

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

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized weight, same shape."""
        # FlexRound's kernel gives no gradient of what it divides, which V needs.
        logs = [log for log in (self.log_s2, self.log_s3, self.log_s4) if log is not None]
        divided = (weight + self.v) * torch.exp(-sum(logs[1:], logs[0]))
        values = self.grid.granularity.group(divided)
        return self.round(values, self.dequantization_scale()).reshape(weight.shape)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return one group for V, in units of the weight, and one for the rest."""
        rest = [p for p in self.parameters() if p.requires_grad and p is not self.v]
        return [{"params": [self.v], "lr": self.lr_v}, {"params": rest, "lr": lr}]
