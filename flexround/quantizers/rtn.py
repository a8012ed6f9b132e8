"""Round-to-nearest, what every learned method has to beat (arXiv 2306.00317, sec. 3.1)."""

from __future__ import annotations

from flexround.quantizers.base import WeightQuantizer


class RTN(WeightQuantizer):
    """W_hat = s * (clamp(round(W / s) + z, qmin, qmax) - z): nothing is learned.

    This is the base's own equation, `WeightQuantizer.reference`, and the base's own pass: no hook
    is overridden. s and z [groups, 1] are the ranges'.
    """
