"""Round-to-nearest, the floor that every learned method has to beat."""

from __future__ import annotations

from flexround.quantizers.base import WeightQuantizer


class RTN(WeightQuantizer):
    """W_hat = s * round(W / s): nothing is learned."""
