"""Statistics of a contrast: its interval over seeds and samples, and what that decides.

With it how many more seeds would decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq

from results.tables.paired_tests import TAIL, margin

MOST_SEEDS = 1000
LEAST = 1e-300  # a smaller p is given as this one

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

    def half(self, tail: float, seeds: int | None = None) -> float:
        """Return half of the interval that leaves tail, a share, out on either side.

        Seeds and samples are both drawn: the halves over each, Student's, add in squares. At two
        seeds one degree of freedom, of Welch and Satterthwaite, is worth too much: their interval
        of 95 % holds the mean in 87 of 100 cases where seeds differ most, this one in 95 or more.
        What a seed draws with the samples is in both halves. seeds: as if there were that many.
        """
        n = seeds or len(self.values)
        over_seeds = margin(math.sqrt(np.var(self.values, ddof=1) / n), n - 1, tail)
        if not self.sampling:
            return over_seeds
        return math.hypot(over_seeds, margin(math.sqrt(self.sampling), self.samples - 1, tail))

    def interval(self, seeds: int | None = None) -> tuple[float, float]:
        """Return the 95 % interval of the contrast."""
        half = self.half(TAIL, seeds)
        return self.mean - half, self.mean + half

    def tail(self, bound: float) -> float:
        """Return the one-sided p of a contrast so far from bound, or further, in its direction."""
        distance = abs(self.mean - bound)
        if not distance:
            return 0.5
        if self.half(LEAST) <= distance:
            return LEAST
        return float(brentq(lambda tail: self.half(tail) - distance, LEAST, 0.5, rtol=1e-9))


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
