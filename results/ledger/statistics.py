"""Statistics of a contrast: its interval over seeds and samples, and what that decides.

With it how many more seeds would decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import t as student

from results.tables.paired_tests import margin

MOST_SEEDS = 1000

Word = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A contrast, one value a seed, for the better where positive.

    Attributes:
        values: [seeds], in points or percent.
        sampling: the variance of the mean over evaluation samples of what a sample adds to the
            contrast, averaged over seeds; None where the metric is no mean over samples.
        samples: how many there are.
    """

    values: tuple[float, ...]
    sampling: float | None = None
    samples: int = 0

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.values))

    def error(self, seeds: int | None = None) -> tuple[float, float]:
        """Return the standard error and its degrees of freedom (Welch 1947, Satterthwaite 1946).

        Seeds and samples are both drawn: their variances add. What a seed draws with the samples
        is in both, so that the interval is rather too wide. seeds: as if there were that many.
        """
        n = seeds or len(self.values)
        over_seeds = float(np.var(self.values, ddof=1)) / n
        over_samples = self.sampling or 0.0
        whole = over_seeds + over_samples
        if not whole:
            return 0.0, float(n - 1)
        freedom = over_seeds**2 / (n - 1)
        if over_samples:
            freedom += over_samples**2 / (self.samples - 1)
        return math.sqrt(whole), whole**2 / freedom

    def interval(self, seeds: int | None = None) -> tuple[float, float]:
        """Return the 95 % interval of the contrast."""
        error, freedom = self.error(seeds)
        half = margin(error, freedom)
        return self.mean - half, self.mean + half

    def tail(self, bound: float) -> float:
        """Return the one-sided p of a contrast so far from bound, or further, in its direction."""
        error, freedom = self.error()
        distance = abs(self.mean - bound)
        return float(student.sf(distance / error, freedom)) if error else 0.5 * (distance == 0)


def decide(found: Estimate, expect: str, margin: float, seeds: int | None = None) -> Word:
    """Return what the interval of found decides.

    Expected to be better, a contrast fails where all of the interval is below the margin, since
    there is no advantage that counts, and else holds where all of it is above zero. Expected to be
    the same, it holds where the interval lies within the margin on both sides, and fails where it
    lies outside.
    """
    low, high = found.interval(seeds)
    if expect == "same":
        if -margin < low and high < margin:
            return "holds"
        return "fails" if low > margin or high < -margin else "undecided"
    if high < margin or (high == margin == 0):
        return "fails"
    return "holds" if low > 0 else "undecided"


def p_value(found: Estimate, expect: str, margin: float, word: Word) -> float:
    """Return the two-sided p of the hypothesis that the verdict rejects, or fails to.

    For holds, that there is no difference, or one beyond the margin; for fails, one that counts.
    """
    if expect == "same":
        bounds = (-margin, margin)
        nearest = min(bounds, key=lambda bound: abs(found.mean - bound))
        return min(1.0, 2 * found.tail(nearest))
    bound = margin if word == "fails" else 0.0
    return min(1.0, 2 * found.tail(bound))


def more_seeds(found: Estimate, expect: str, margin: float) -> int | None:
    """Return how many more seeds would decide if the mean and the spread stayed, None if none."""
    have = len(found.values)
    for seeds in range(have + 1, MOST_SEEDS):
        if decide(found, expect, margin, seeds) != "undecided":
            return seeds - have
    return None
