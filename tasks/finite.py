"""Outputs that are no numbers, told before they are taken for an answer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BEYOND = (
    "beyond what a float holds: the network predicts nothing; look at the blocks' errors, give "
    "more bits= or lower rates of learning, or another checkpoint where full precision has it too"
)
WAY_OUT = (
    "a weight, a scale or an activation is not finite; look at the blocks' errors, give more "
    "bits= or lower rates of learning, or another checkpoint where full precision has it too"
)


def check_outputs(outputs: Tensor) -> None:
    """Check that a network's outputs [...] are numbers: argmax would take nan for an answer.

    Raises:
        ValueError: when one is nan.
    """
    if torch.isnan(outputs).any():
        raise ValueError(f"the network's outputs are nan on the evaluation data: {WAY_OUT}")


def perplexity_of(mean: float) -> float:
    """Return exp of the mean negative log-likelihood [nats a token].

    Raises:
        ValueError: when it is nan, or its exp is beyond what a float holds.
    """
    if math.isnan(mean):
        raise ValueError(f"the mean negative log-likelihood is nan: {WAY_OUT}")
    try:
        found = math.exp(mean)
    except OverflowError:
        found = math.inf
    if math.isinf(found):
        raise ValueError(
            f"the mean negative log-likelihood is {mean:.6g} nats a token, its perplexity {BEYOND}"
        )
    return found
