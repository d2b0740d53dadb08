"""Means over cases, how sure they are, and whether two differ."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

# Smaller changes are rounding, not a change.
_NO_CHANGE = 1e-9


def mean_over_cases(values: ArrayLike) -> float:
    """Mean over labels of the mean over cases.

    Args:
        values: (cases,) for one label or (cases, labels); NaN where a case has no value.

    Returns:
        The mean; a label without any value is left out. NaN when nothing is left.
    """
    table = _table(values)
    return float(_label_means(np.ones((1, len(table))), table)[0])


def bootstrap_interval(
    values: ArrayLike, *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of :func:`mean_over_cases`, drawing cases.

    A case is drawn with all its labels, so labels of one case stay together. B. Efron,
    R. Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.

    Args:
        values: (cases,) for one label or (cases, labels); NaN where a case has no value.
            Cases without any value are not drawn.
        seed: The same seed gives the same interval.
        resamples: How often the cases are drawn anew.
        level: Share of resampled means inside the interval, between 0 and 1.

    Returns:
        Lower and upper end; (NaN, NaN) for fewer than two cases, which say nothing of
        how cases vary.
    """
    table = _table(values)
    table = table[np.isfinite(table).any(axis=1)]
    cases = len(table)
    if cases < 2:
        return float("nan"), float("nan")
    means = _label_means(_draws(cases, seed, resamples), table)
    low, high = np.nanpercentile(means, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedTest:
    """Whether the same cases score differently under two models.

    Attributes:
        cases: How many have a value under both.
        mean_difference: Mean of second - first; NaN without cases.
        interval: Its 95 % bootstrap interval over cases; (NaN, NaN) for fewer than two.
        p_value: Wilcoxon signed-rank test, two-sided (F. Wilcoxon, 1945); exact for up to 50
            cases without ties. 1 when no case changed, NaN without cases.
        rank_biserial: Effect size, -1 to 1: the share of rank sum in favour of the second
            model minus that in favour of the first (D. Kerby, 2014). 0 when no case changed.
        higher: Cases where the second value is higher.
        lower: Cases where it is lower.
    """

    cases: int
    mean_difference: float
    interval: tuple[float, float]
    p_value: float
    rank_biserial: float
    higher: int
    lower: int


def paired_test(first: ArrayLike, second: ArrayLike) -> PairedTest:
    """Compare the values of the same cases under two models.

    Cases without a value under either are left out; cases that do not change count for the
    mean but not for the ranks.

    Args:
        first: (cases,), NaN where a case has no value.
        second: (cases,), in the same order.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    defined = np.isfinite(one) & np.isfinite(two)
    change = (two - one)[defined]
    moved = change[np.abs(change) > _NO_CHANGE]
    nan = float("nan")
    p_value, effect = (1.0, 0.0) if change.size else (nan, nan)
    if moved.size:
        p_value = float(stats.wilcoxon(moved).pvalue)
        ranks = stats.rankdata(np.abs(moved))
        effect = float((ranks * np.sign(moved)).sum() / ranks.sum())
    return PairedTest(
        cases=int(change.size),
        mean_difference=float(change.mean()) if change.size else nan,
        interval=bootstrap_interval(change),
        p_value=p_value,
        rank_biserial=effect,
        higher=int((moved > 0).sum()),
        lower=int((moved < 0).sum()),
    )


@lru_cache(maxsize=8)
def _draws(cases: int, seed: int, resamples: int) -> NDArray[np.int64]:
    """(resamples, cases) how often each case is drawn; the same for every metric and label."""
    chance = np.random.default_rng(seed)
    return chance.multinomial(cases, np.full(cases, 1 / cases), size=resamples)


def _table(values: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(values, dtype=np.float64)
    return table[:, None] if table.ndim == 1 else table


def _label_means(
    draws: NDArray[np.int64] | NDArray[np.float64], table: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean over labels of the mean over drawn cases.

    Args:
        draws: (resamples, cases) how often each case is drawn.
        table: (cases, labels) with NaN for no value.

    Returns:
        (resamples,), NaN where no drawn case has a value.
    """
    defined = np.isfinite(table)
    weights = draws.astype(np.float64)
    counts = weights @ defined.astype(np.float64)
    sums = weights @ np.where(defined, table, 0.0)
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    labels = (counts > 0).sum(axis=1)
    overall: NDArray[np.float64] = np.full(len(labels), np.nan)
    np.divide(means.sum(axis=1), labels, out=overall, where=labels > 0)
    return overall
