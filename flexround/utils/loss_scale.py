"""Scale of a loss whose gradients pass through float16, where they would vanish.

Below 6e-8 float16 holds nothing but 0, and a mean over thousands of tokens has gradients of that
size. Scaling the loss is what mixed-precision training does (arXiv 1710.03740, sec. 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

FLOAT16_SCALE = 4096.0  # a power of two: to divide by it rounds nothing


def loss_scale(weights: Iterable[Tensor]) -> float:
    """Return what to multiply a loss by before backward, 1 unless one of weights is float16."""
    return FLOAT16_SCALE if any(w.dtype == torch.float16 for w in weights) else 1.0
