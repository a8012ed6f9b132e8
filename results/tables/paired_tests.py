"""Statistics of pairs: Student's t interval (1908) and McNemar's exact test (1947)."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from scipy.stats import t as student

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2  # outside of an interval, on either side
PERPLEXITY = "perplexity"  # the one metric whose outcomes are its logarithm

Interval = tuple[float, float]


def metric_of(outcomes: NDArray[Any], metric: str) -> float:
    """Return the metric of outcomes [samples]: of right ones the percentage, else the mean.

    Of a perplexity it is exp of the mean.
    """
    return float(parts(outcomes, metric).mean())


def parts(outcomes: NDArray[Any], metric: str) -> NDArray[np.float64]:
    """Return what each of outcomes [samples] is of their mean, the metric [samples].

    Of a perplexity to first order, as it is no mean over samples.
    """
    values = outcomes.astype(np.float64)
    if outcomes.dtype == bool:
        return 100 * values
    if metric != PERPLEXITY:
        return values
    mean = values.mean()
    return np.asarray(np.exp(mean) * (1 + values - mean))


def margin(error: float, freedom: float, tail: float = TAIL) -> float:
    """Return how far the interval of a mean reaches to each side that leaves tail out on it.

    error is the mean's standard error, freedom its degrees of freedom.
    """
    return float(student.isf(tail, freedom)) * error


def mean_interval(values: ArrayLike) -> Interval | None:
    """Return the 95 % interval of the mean of values [n], None where there is one."""
    drawn = np.asarray(values, dtype=np.float64)
    if len(drawn) < 2:
        return None
    half = margin(float(drawn.std(ddof=1)) / sqrt(len(drawn)), len(drawn) - 1)
    return float(drawn.mean()) - half, float(drawn.mean()) + half


def metric_interval(first: NDArray[Any], second: NDArray[Any], metric: str) -> Interval | None:
    """Return the 95 % interval of the difference in the metric of the same [samples].

    None where there is one sample.
    """
    return mean_interval(parts(first, metric) - parts(second, metric))


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[int, int, float]:
    """Return (b, c, p): samples [samples] that only first, only second has right; p two-sided.

    p is that of b successes in b + c throws of a fair coin.
    """
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    return b, c, float(binomtest(b, b + c).pvalue) if b + c else 1.0
