"""Look at whole cases with the weights of the moment, on the network's own grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.plan import Plan
from medseg.evaluation.overlap import dice, overlap_counts
from medseg.inference.predictor import Predictor
from medseg.training.cache import CachedCase


def predicted_classes(
    predictor: Predictor, cases: Sequence[CachedCase]
) -> Iterator[tuple[CachedCase, NDArray[Any]]]:
    """Each case with its predicted class indices (I, J, K).

    The case comes back with its label as a mask shows it: class indices, a later region over an
    earlier one. What is to be ignored is background in both.
    """
    for case in cases:
        prediction = predictor.classes(case.volume(predictor.plan))
        yield _side_by_side(case, prediction, predictor.plan)


def _side_by_side(
    case: CachedCase, prediction: NDArray[Any], plan: Plan
) -> tuple[CachedCase, NDArray[Any]]:
    scheme, indices = plan.scheme, np.asarray(case.label)
    if scheme.ignored is not None:
        prediction = np.where(indices == scheme.ignored, 0, prediction)
    return replace(case, label=scheme.painted(indices)), prediction


def case_dice(prediction: NDArray[Any], case: CachedCase, plan: Plan) -> NDArray[np.float64]:
    """Dice of each label; NaN where both are empty, or where it was not annotated.

    Of a region everything counts that it contains, also where another one is painted over it.

    Args:
        prediction: (I, J, K) class indices, from the network.
        case: As it lies in the cache.
        plan: With the label scheme.
    """
    scheme, indices = plan.scheme, np.asarray(case.label)
    if scheme.ignored is not None:
        prediction = np.where(indices == scheme.ignored, 0, prediction)
    if scheme.regions:
        found = np.array(
            [
                _binary_dice(scheme.shown[prediction, n], scheme.membership[indices, n])
                for n in range(len(plan.labels))
            ]
        )
    else:
        classes = range(1, len(plan.labels) + 1)
        counts = overlap_counts(prediction, scheme.painted(indices), classes)
        found = np.array([dice(counts[index]) for index in classes])
    if case.known is not None:
        found[~np.array(case.known)] = np.nan
    return found


def _binary_dice(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    return dice(overlap_counts(prediction.view(np.uint8), reference.view(np.uint8), [1])[1])


def class_dice(predictor: Predictor, cases: Sequence[CachedCase]) -> NDArray[np.float64]:
    """Dice (cases, labels) as :func:`case_dice` gives it."""
    plan = predictor.plan
    rows = [case_dice(predictor.classes(case.volume(plan)), case, plan) for case in cases]
    return np.array(rows).reshape(-1, len(plan.labels))


def known_means(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each column of (cases, labels) without NaN; NaN where nothing is left."""
    known = ~np.isnan(table)
    empty = np.full(table.shape[1], np.nan)
    sums = np.nansum(table, axis=0)
    means = np.divide(sums, known.sum(axis=0), out=empty, where=known.any(axis=0))
    return np.asarray(means)
