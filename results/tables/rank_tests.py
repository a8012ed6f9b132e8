"""Statistics of methods over settings: what only order tells, and what needs one unit.

Friedman's test and Nemenyi's critical difference of mean ranks are those of Demsar, Statistical
Comparisons of Classifiers over Multiple Data Sets, JMLR 2006, sec. 3.2. Whether two methods are
told apart is asked of the two alone, by the signed-rank or the sign test with Holm's correction, as
Benavoli, Corani and Mangili, Should We Really Use Post-Hoc Tests Based on Mean-Ranks?, JMLR 2016,
recommend: a mean rank depends on who else takes part.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, friedmanchisquare, rankdata, studentized_range, wilcoxon

from results.tables.paired_tests import LEVEL

# Settings below which no outcome of the sign test, and none of the signed-rank test, has a p value
# under 5 %: 2 * 0.5^5 is 6.25 %.
LEAST = 6


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Return the ranks of values [settings, methods], the largest of a setting first: 1.

    Equal ones share the mean of theirs.
    """
    return np.asarray(rankdata(-np.asarray(values, dtype=np.float64), axis=1), dtype=np.float64)


def friedman(values: ArrayLike) -> float | None:
    """Return the p value of values [settings, methods] having one order in common by chance.

    None for fewer than three methods, and where they are all alike.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.shape[1] < 3 or (table == table[:, :1]).all():
        return None
    return float(friedmanchisquare(*table.T).pvalue)


def critical_difference(methods: int, settings: int) -> float:
    """Return Nemenyi's critical difference of two mean ranks, q sqrt(k (k + 1) / (6 N))."""
    q = float(studentized_range.ppf(LEVEL, methods, np.inf)) / sqrt(2)
    return q * sqrt(methods * (methods + 1) / (6 * settings))


def told_apart(differences: Sequence[float], one_unit: bool) -> float | None:
    """Return the p value of two methods' differences [settings] being as often of either sign.

    By Wilcoxon's signed ranks where the settings have one unit; else by the sign test, since the
    sizes of unlike metrics have no order; settings without a difference take no part in that one.
    None for fewer than LEAST settings.
    """
    if len(differences) < LEAST:
        return None
    if not any(differences):
        return 1.0
    if one_unit:
        return float(wilcoxon(differences, zero_method="zsplit").pvalue)
    wins, losses = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    return float(binomtest(wins, wins + losses).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number by Holm's steps, in the same order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    found, largest = [0.0] * len(p_values), 0.0
    for place, at in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[at]))
        found[at] = largest
    return found
