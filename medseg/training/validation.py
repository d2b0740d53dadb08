"""Look at whole cases with the weights of the moment, on the network's own grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.evaluation.overlap import dice, overlap_counts
from medseg.inference.predictor import Predictor
from medseg.training.cache import CachedCase


def predicted_classes(
    predictor: Predictor, cases: Sequence[CachedCase]
) -> Iterator[tuple[CachedCase, NDArray[Any]]]:
    """Each case with its predicted class indices (I, J, K)."""
    for case in cases:
        yield case, predictor.classes(torch.from_numpy(np.array(case.image)))


def class_dice(
    prediction: NDArray[Any], reference: NDArray[Any], classes: int
) -> NDArray[np.float64]:
    """Dice of class 1..classes-1; NaN where both masks are empty."""
    counts = overlap_counts(prediction, reference, range(1, classes))
    return np.array([dice(counts[index]) for index in range(1, classes)])


def mean_class_dice(predictor: Predictor, cases: Sequence[CachedCase]) -> NDArray[np.float64]:
    """Mean Dice of each class over cases; NaN for a class that no case has."""
    classes = predictor.plan.network.classes
    rows = []
    for case, prediction in predicted_classes(predictor, cases):
        rows.append(class_dice(prediction, np.asarray(case.label), classes))
    return mean_over_cases(np.array(rows).reshape(-1, classes - 1))


def mean_over_cases(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each column of (cases, labels) without NaN; NaN where nothing is left."""
    known = ~np.isnan(table)
    empty = np.full(table.shape[1], np.nan)
    sums = np.nansum(table, axis=0)
    means = np.divide(sums, known.sum(axis=0), out=empty, where=known.any(axis=0))
    return np.asarray(means)
