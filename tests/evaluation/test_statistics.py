"""Means by hand, intervals against SciPy's bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from medseg.evaluation.statistics import bootstrap_interval, mean_over_cases, paired_test

NAN = math.nan


def test_mean_by_hand() -> None:
    assert mean_over_cases([0.5, NAN, 1.0]) == pytest.approx(0.75)
    # Mean over labels of the means over cases: (0.5 + 0.9) / 2, not the mean of all three.
    assert mean_over_cases([[0.2, NAN], [0.8, 0.9]]) == pytest.approx(0.7)
    # A label that no case has is left out.
    assert mean_over_cases([[0.2, NAN], [0.8, NAN]]) == pytest.approx(0.5)
    assert math.isnan(mean_over_cases([NAN, NAN]))
    assert math.isnan(mean_over_cases([]))


def test_interval_against_scipy() -> None:
    values = np.random.default_rng(7).beta(8, 2, 40)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20000, rng=np.random.default_rng(1)
    ).confidence_interval
    found = bootstrap_interval(values, resamples=20000)
    # Two draws of 20000 differ by about a fiftieth of the standard error at the ends.
    assert found == pytest.approx(tuple(expected), abs=0.06 * values.std() / 40**0.5)
    wide = bootstrap_interval(values, level=0.99)
    assert wide[0] < found[0] < values.mean() < found[1] < wide[1]


def test_cases_are_drawn_with_all_their_labels() -> None:
    table = np.random.default_rng(3).random((30, 2))
    paired = (table.mean(axis=1),)
    expected = stats.bootstrap(
        paired, np.mean, method="percentile", n_resamples=20000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert bootstrap_interval(table, resamples=20000) == pytest.approx(tuple(expected), abs=4e-3)


def test_undefined_values_are_not_drawn() -> None:
    values = [0.1, 0.4, 0.6, 0.9]
    assert bootstrap_interval([NAN, *values, NAN]) == bootstrap_interval(values)
    low, high = bootstrap_interval([[0.5, NAN], [0.5, 0.1], [0.5, NAN]])
    # With the second case drawn the mean is (0.5 + 0.1) / 2, without it 0.5.
    assert (low, high) == pytest.approx((0.3, 0.5))


def test_repeats_and_limits() -> None:
    values = [0.1, 0.4, 0.6, 0.9]
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval([0.7, 0.7, 0.7]) == pytest.approx((0.7, 0.7))
    for few in ([], [0.5], [0.5, NAN]):
        assert all(math.isnan(end) for end in bootstrap_interval(few))


def test_paired_by_hand() -> None:
    found = paired_test([0.5, 0.6, 0.7, NAN, 0.9], [0.6, 0.58, 1.0, 0.8, 0.9])
    # Changes 0.1, -0.02, 0.3 and none: ranks 2, 1 and 3.
    assert (found.cases, found.higher, found.lower) == (4, 2, 1)
    assert found.mean_difference == pytest.approx(0.38 / 4)
    assert found.rank_biserial == pytest.approx((2 + 3 - 1) / 6)
    # Of the 8 ways to give signs to 3 ranks, two have a negative sum of at most 1.
    assert found.p_value == pytest.approx(2 * 2 / 8)
    same = paired_test([0.1, 0.2], [0.1, 0.2])
    assert (same.p_value, same.rank_biserial, same.mean_difference) == (1.0, 0.0, 0.0)
    none = paired_test([NAN], [0.3])
    assert none.cases == 0
    assert math.isnan(none.p_value)


def test_paired_against_scipy() -> None:
    first, second = np.random.default_rng(3).random((2, 40))
    expected = stats.wilcoxon(second, first, method="exact")
    found = paired_test(first, second)
    assert found.p_value == pytest.approx(expected.pvalue)
    total = 40 * 41 / 2
    sign = np.sign(found.rank_biserial)
    assert found.rank_biserial == pytest.approx(sign * (total - 2 * expected.statistic) / total)
    low, high = found.interval
    assert low < found.mean_difference < high
