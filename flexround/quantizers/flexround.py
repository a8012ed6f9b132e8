"""FlexRound: learnable rounding by element-wise division (arXiv 2306.00317, eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flexround.grid import Grid
from flexround.kernels.elementwise_division import ElementwiseDivision
from flexround.quantizers.base import WeightQuantizer, on_grid
from flexround.ranges import Ranges


class FlexRound(WeightQuantizer):
    """W_hat = s1 * round(W / (s1 * S2 * s3 * s4)).

    s1 is the step size [groups, 1]; S2 has the weight's shape [out, in, *kernel], s3 is
    [out, 1, *1] and s4, for convolutions only, [1, in, *1]. All live in the log domain, which keeps
    them positive, and start at zero, log_s1 relative to the scale that the ranges chose: training
    starts at round-to-nearest to the last bit. Only s1 multiplies the codes afterwards.
    """

    def reference(self, weight: Tensor) -> Tensor:
        """Return the equation's W_hat in plain torch operations and autograd, same shape."""
        logs = [log for log in (self.log_s2, self.log_s3, self.log_s4) if log is not None]
        divided = weight / torch.exp(sum(logs[1:], logs[0]))  # W / (S2 * s3 * s4)
        s1 = self.grid.admitted(self.scale * torch.exp(self.log_s1))
        steps = self.grid.granularity.group(divided) / s1
        return on_grid(steps, self.zero_point, s1, self.grid).reshape(weight.shape)

    def __init__(
        self,
        weight: Tensor,
        *,
        grid: Grid,
        ranges: Ranges,
        learn_s1: bool,
        use_s3: bool,
        use_s4: bool,
    ) -> None:
        super().__init__(weight, grid=grid, ranges=ranges)
        ones = (1,) * (weight.dim() - 2)
        new = weight.detach().new_zeros
        self.log_s1 = nn.Parameter(new(self.scale.shape), requires_grad=learn_s1)
        self.log_s2 = nn.Parameter(new(weight.shape))
        self.log_s3 = nn.Parameter(new(weight.shape[0], 1, *ones)) if use_s3 else None
        # A Linear's input scale would be s4 too, but eq. 2 gives it to convolutions alone.
        has_s4 = use_s4 and weight.dim() > 2
        self.log_s4 = nn.Parameter(new(1, weight.shape[1], *ones)) if has_s4 else None

    def dequantization_scale(self) -> Tensor:
        """Return s1, [groups, 1]."""
        return self.grid.admitted(self.scale * torch.exp(self.log_s1))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized weight, same shape."""
        out: Tensor = ElementwiseDivision.apply(
            weight.contiguous(),
            self.dequantization_scale(),
            self.dequantization_zero_point(),
            self.log_s2,
            self.log_s3,
            self.log_s4,
            self.grid,
        )
        return out
