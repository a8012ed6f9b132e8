"""Intervals, decisions and corrections, against worked examples and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from results.ledger.statistics import Estimate, decide, more_seeds, p_value
from results.tables.rank_tests import holm


def test_the_interval_over_seeds_is_students():
    # mean 2, standard deviation 1, three seeds: t of 2 degrees at 97.5 % is 4.3027
    low, high = Estimate((1.0, 2.0, 3.0)).interval()
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)


def test_the_halves_over_seeds_and_samples_add_in_squares():
    found = Estimate((1.0, 2.0, 3.0), sampling=1 / 3, samples=11)
    # t of 2 degrees at 97.5 % is 4.3027, of 10 degrees 2.2281; each variance is 1 / 3
    half = ((4.3027**2 + 2.2281**2) / 3) ** 0.5
    assert found.interval() == pytest.approx((2 - half, 2 + half), abs=1e-3)


@pytest.mark.parametrize("sampling", [None, 1 / 3])
@pytest.mark.parametrize("bound", [-2.0, 0.0, 1.0, 1.9])
def test_the_p_is_where_the_interval_reaches_the_bound(bound, sampling):
    found = Estimate((1.0, 2.0, 3.0), sampling, 11)
    assert found.half(found.tail(bound)) == pytest.approx(abs(2 - bound), rel=1e-6)


def test_a_contrast_without_spread_has_the_least_p():
    assert 0 < Estimate((1.0, 1.0)).tail(0.0) < 1e-100
    assert Estimate((1.0, 1.0)).tail(1.0) == 0.5


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
def test_intervals_hold_the_truth_as_often_as_they_say(spread, seeds):
    """Seeds move all samples by their own amount, samples differ, both are drawn anew."""
    rng, samples, truth, tries, inside = np.random.default_rng(0), 200, 0.7, 1000, 0
    for _ in range(tries):
        values = (
            truth + spread * rng.standard_normal((seeds, 1)) + 10 * rng.standard_normal(samples)
        )
        values = values + rng.standard_normal((seeds, samples))
        variance = values.mean(axis=0).var(ddof=1) / samples
        low, high = Estimate(tuple(values.mean(axis=1)), float(variance), samples).interval()
        inside += low < truth < high
    # Three standard deviations of a share of 0.95 in 1,000 tries are 0.02.
    assert inside / tries > 0.95 - 0.021


def test_seeds_alone_would_miss_what_the_samples_decide():
    """The same samples for all seeds: their share does not show in the spread over seeds."""
    rng, inside, tries = np.random.default_rng(1), 0, 500
    for _ in range(tries):
        means = 10 * rng.standard_normal(200).mean() + 0.01 * rng.standard_normal(5)
        low, high = Estimate(tuple(means)).interval()
        inside += low < 0 < high
    assert inside / tries < 0.5


@pytest.mark.parametrize(
    ("values", "expect", "margin", "word"),
    [
        ((1.0, 1.1, 0.9), "better", 0.2, "holds"),
        ((0.1, 0.11, 0.09), "better", 0.2, "fails"),  # above zero, and nothing that counts
        ((-1.0, -1.1, -0.9), "better", 0.2, "fails"),
        ((0.0, 0.01, -0.01), "better", 0.2, "fails"),  # no advantage that counts
        ((1.0, 5.0, -2.0), "better", 0.2, "undecided"),
        ((0.0, 0.01, -0.01), "same", 0.5, "holds"),
        ((1.0, 1.1, 0.9), "same", 0.5, "fails"),
        ((-1.0, -1.1, -0.9), "same", 0.5, "fails"),
        ((0.5, 0.6, 0.4), "same", 0.5, "undecided"),
    ],
)
def test_what_an_interval_decides(values, expect, margin, word):
    assert decide(Estimate(values), expect, margin) == word


@pytest.mark.parametrize("expect", ["better", "same"])
@pytest.mark.parametrize("mean", [-1.0, -0.3, 0.0, 0.1, 0.19, 0.21, 0.4, 1.0])
def test_a_verdict_has_a_p_below_5_percent(expect, mean):
    found = Estimate((mean - 0.05, mean, mean + 0.05))
    word = decide(found, expect, 0.2)
    p = p_value(found, expect, 0.2, word)
    assert (p <= 0.05) == (word != "undecided")


def test_as_many_more_seeds_as_decide_and_not_one_fewer():
    found = Estimate((0.2, 1.0, 2.1))
    assert decide(found, "better", 0.1) == "undecided"
    more = more_seeds(found, "better", 0.1)
    assert more is not None
    assert decide(found, "better", 0.1, 3 + more) == "holds"
    assert decide(found, "better", 0.1, 3 + more - 1) == "undecided"


def test_where_the_samples_are_what_is_missing_no_seeds_help():
    assert more_seeds(Estimate((0.9, 1.0, 1.1), sampling=4.0, samples=50), "better", 0.1) is None


def test_holms_correction_of_a_worked_example():
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04 no less than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
