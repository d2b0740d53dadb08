"""Means over cases and how sure they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
    draws = np.random.default_rng(seed).multinomial(
        cases, np.full(cases, 1 / cases), size=resamples
    )
    means = _label_means(draws, table)
    low, high = np.nanpercentile(means, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


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
