"""Statistics of pairs: percentile bootstrap (Efron 1979) and McNemar's exact test (1947)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, bootstrap

LEVEL = 0.95
RESAMPLES = 2000
PERPLEXITY = "perplexity"  # the one metric whose outcomes are its logarithm
BATCH = 50  # resamples at a time: 50 of 50,000 images are 20 MB

Interval = tuple[float, float]


def metric_of(outcomes: NDArray[Any], metric: str, axis: int = -1) -> Any:
    """Return the metric of outcomes [samples]: of right ones the percentage, else the mean.

    Of a perplexity it is exp of the mean.
    """
    mean = outcomes.mean(axis=axis, dtype=np.float64)
    if outcomes.dtype == bool:
        return 100 * mean
    return np.exp(mean) if metric == PERPLEXITY else mean


def mean_interval(differences: ArrayLike) -> Interval | None:
    """Return the 95 % interval of the mean of differences [seeds], None where there is one."""
    values = np.asarray(differences, dtype=np.float64)
    return None if len(values) < 2 else _percentile((values,), np.mean)


def metric_interval(first: NDArray[Any], second: NDArray[Any], metric: str) -> Interval:
    """Return the 95 % interval of the difference in the metric of the same [samples]."""

    def difference(x: NDArray[Any], y: NDArray[Any], axis: int) -> Any:
        return metric_of(x, metric, axis) - metric_of(y, metric, axis)

    return _percentile((first, second), difference)


def _percentile(data: tuple[NDArray[Any], ...], statistic: Any) -> Interval:
    found = bootstrap(
        data, statistic, paired=True, method="percentile", confidence_level=LEVEL,
        n_resamples=RESAMPLES, batch=BATCH, vectorized=True, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[int, int, float]:
    """Return (b, c, p): samples [samples] that only first, only second has right; p two-sided.

    p is that of b successes in b + c throws of a fair coin.
    """
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    return b, c, float(binomtest(b, b + c).pvalue) if b + c else 1.0
