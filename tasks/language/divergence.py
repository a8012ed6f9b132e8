"""Divergence of a quantized network's predictions from the full-precision network's.

At a position KL(p || q) = sum over tokens of p (log p - log q), in nats, where p are the
probabilities that full precision gives and q those of the quantized network. It needs no text that
is right, and so is far less noisy than a difference of perplexities on as many tokens. Beside it
stands whether both have the same likeliest token.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

POSITIONS = 64  # at a time: in double precision a vocabulary of 128,000 takes 66 MB


def kl_and_agreement(reference: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return (KL(p || q) [positions] in nats, the same likeliest token [positions] as bool).

    reference are full precision's logits [positions, vocabulary], logits the quantized network's.
    In double precision: in single, the sums' rounding is what eight bits cost.
    """
    kl = [
        _kl(full.double().log_softmax(-1), own.double().log_softmax(-1))
        for full, own in zip(reference.split(POSITIONS), logits.split(POSITIONS), strict=True)
    ]
    return torch.cat(kl), reference.argmax(-1) == logits.argmax(-1)


def _kl(full: Tensor, own: Tensor) -> Tensor:
    """Return sum of exp(full) (full - own) over the last axis; a probability of 0 adds nothing."""
    terms = full.exp() * (full - own)
    return terms.masked_fill_(full == -torch.inf, 0).sum(-1).clamp_(min=0)  # -1e-17 is rounding


class Divergence:
    """The divergence over the windows of a text, as they are added."""

    def __init__(self) -> None:
        self._kl: list[Tensor] = []
        self._same: list[Tensor] = []

    def add(self, reference: Tensor, logits: Tensor) -> None:
        """Add a window by both networks' logits, [positions, vocabulary]."""
        kl, same = kl_and_agreement(reference, logits)
        self._kl.append(kl.cpu())
        self._same.append(same.cpu())

    def metrics(self) -> dict[str, float]:
        """Return mean, median and 99th percentile over all positions in nats, agreement in percent.

        {} where there is no window.
        """
        if not self._kl:
            return {}
        kl = torch.cat(self._kl).numpy()
        return {
            "kl": float(kl.mean()),
            "kl_median": float(np.median(kl)),
            "kl_p99": float(np.quantile(kl, 0.99)),
            "agreement": 100 * torch.cat(self._same).double().mean().item(),
        }

    def outcomes(self) -> dict[str, Tensor]:
        """Return the means of each window, [windows], in the same units; {} where there is none."""
        if not self._kl:
            return {}
        return {
            "kl": torch.stack([window.mean() for window in self._kl]),
            "agreement": torch.stack([100 * window.double().mean() for window in self._same]),
        }
