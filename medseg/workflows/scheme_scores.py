"""Scores of a predicted mask against the raw mask of a case, as the plan's label scheme says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.labels import LabelSet
from medseg.core.plan import Plan
from medseg.datasets.dataset import Case
from medseg.evaluation.evaluate import CaseScores, score_case
from medseg.evaluation.masks import LayeredMasks


def score_against_case(
    prediction: NDArray[Any],
    mask: NDArray[Any],
    *,
    case: Case,
    plan: Plan,
    spacing_mm: Sequence[float],
) -> CaseScores:
    """Score what a model of the plan says of a case.

    Voxels to be ignored count nowhere, labels that were not annotated in the case are left out,
    and of a region everything counts that it contains, also where another is painted over it.

    Args:
        prediction: (I, J, K) values of the plan's labels.
        mask: (I, J, K) values of the dataset.
        case: Whose mask it is.
        plan: Of the model.
        spacing_mm: Voxel size along I, J, K.
    """
    scheme = plan.scheme
    indices, known = scheme.to_indices(mask), scheme.known(case.annotated)
    if scheme.ignored is not None:
        prediction = np.where(indices == scheme.ignored, 0, prediction).astype(prediction.dtype)
    told = [
        label for place, label in enumerate(plan.labels.labels) if known is None or known[place]
    ]
    if not told:
        return CaseScores({})
    labels = LabelSet(labels=tuple(told))
    if not scheme.regions:
        reference = plan.labels.to_values(scheme.painted(indices))
        return score_case(prediction, reference, spacing_mm=spacing_mm, labels=labels)
    table = np.zeros(max(plan.labels.values) + 1, dtype=np.intp)
    table[list(plan.labels.values)] = np.arange(1, len(plan.labels) + 1)
    classes = table[prediction]
    return score_case(
        _layers(plan, scheme.shown, classes), _layers(plan, scheme.membership, indices),
        spacing_mm=spacing_mm, labels=labels,
    )  # fmt: skip


def _layers(plan: Plan, table: NDArray[np.bool_], classes: NDArray[Any]) -> LayeredMasks:
    def masks() -> Iterable[tuple[int, NDArray[np.bool_]]]:
        for place, value in enumerate(plan.labels.values):
            yield value, table[:, place][classes]

    return LayeredMasks.cut(classes.shape, masks())
