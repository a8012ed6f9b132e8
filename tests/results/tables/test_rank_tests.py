"""Statistics of methods over settings, against closed forms."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import chi2

from results.tables.rank_tests import (
    LEAST,
    critical_difference,
    friedman,
    holm,
    ranks,
    told_apart,
)


def test_ranks_count_who_is_ahead_and_friedmans_statistic_is_its_formula():
    """chi-square = 12 N / (k (k + 1)) (sum of squared mean ranks) - 3 N (k + 1), k - 1 degrees."""
    table = np.random.default_rng(0).normal(size=(9, 4)) + np.array([0.0, 0.5, 1.0, 1.5])
    ranked = ranks(table)
    ahead = (table[:, None, :] > table[:, :, None]).sum(2)
    assert np.array_equal(ranked, ahead + 1)
    squares = (ranked.mean(0) ** 2).sum()
    statistic = 12 * 9 / (4 * 5) * squares - 3 * 9 * 5
    assert friedman(table) == pytest.approx(chi2.sf(statistic, 3))


def test_the_critical_difference_of_two_methods_is_the_normal_one():
    """Two mean ranks differ by a mean of n signs, of standard deviation 1 / sqrt(n)."""
    for settings in (6, 50):
        assert critical_difference(2, settings) == pytest.approx(1.95996 / settings**0.5, rel=1e-4)
    assert critical_difference(5, 50) > critical_difference(4, 50)


def test_ties_share_their_ranks():
    assert ranks([[3.0, 1.0, 3.0]]).tolist() == [[1.5, 3.0, 1.5]]


def test_no_order_is_tested_of_two_methods_or_of_equal_ones():
    assert friedman([[1.0, 2.0]] * 8) is None
    assert friedman([[1.0, 1.0, 1.0]] * 8) is None


def test_the_sign_test_counts_order_alone():
    """All of n wins have the two-sided p value 2 / 2^n, however large they are."""
    for n in (6, 9):
        for sizes in (np.ones(n), 10.0 ** np.arange(n)):
            assert told_apart(list(sizes), one_unit=False) == pytest.approx(2 / 2**n)
    assert told_apart([1.0] * 3 + [-1e6] * 3, one_unit=False) == 1
    assert told_apart([0.0] * 7, one_unit=False) == told_apart([0.0] * 7, one_unit=True) == 1


def test_signed_ranks_are_those_of_every_assignment_of_signs():
    differences = [1.0, -2.0, 3.5, 4.0, 5.0, 6.0, 7.5]
    places = np.arange(1, 8)
    own = places[np.array(differences) > 0].sum()
    sums = [places[np.array(signs) > 0].sum() for signs in product((1, -1), repeat=7)]
    far = np.mean([abs(s - 14) >= abs(own - 14) for s in sums])
    assert told_apart(differences, one_unit=True) == pytest.approx(far)


def test_fewer_settings_can_tell_nothing_and_are_not_tested():
    assert min(n for n in range(1, 20) if 2 / 2**n < 0.05) == LEAST
    assert told_apart([1.0] * (LEAST - 1), one_unit=True) is None
    assert told_apart([1.0] * LEAST, one_unit=True) < 0.05


def test_holms_steps():
    """Holm (1979): the smallest of m p values times m, the next times m - 1, never falling."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
