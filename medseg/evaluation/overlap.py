"""Overlap of two label masks: counts, Dice and IoU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import GeometryError

# Large enough that NumPy's loops dominate, small enough that the int64 copy which bincount
# makes stays far below the size of a scan.
_CHUNK_VOXELS = 1 << 22


class Overlap(NamedTuple):
    """Voxel counts of one label."""

    true_positive: int
    false_positive: int
    false_negative: int


def overlap_counts(
    prediction: NDArray[Any], reference: NDArray[Any], values: Sequence[int]
) -> dict[int, Overlap]:
    """Count for every label the voxels in both masks, in one only, in the other only.

    The cost does not grow with the number of labels.

    Args:
        prediction: Integers of any shape.
        reference: Integers of the same shape.
        values: The labels to count, each above 0.

    Returns:
        The counts by label value, in the order of ``values``.

    Raises:
        GeometryError: The shapes differ.
    """
    if prediction.shape != reference.shape:
        raise GeometryError(
            "masks to compare", expected=f"shape {reference.shape}", got=str(prediction.shape)
        )
    if not values:
        return {}
    top = max(values)
    in_prediction = _histogram(prediction, top)
    in_reference = _histogram(reference, top)
    in_both = _histogram(np.where(prediction == reference, reference, 0), top)
    return {
        value: Overlap(
            int(in_both[value]),
            int(in_prediction[value] - in_both[value]),
            int(in_reference[value] - in_both[value]),
        )
        for value in values
    }


def dice(counts: Overlap) -> float:
    """Dice coefficient, 2 TP / (2 TP + FP + FN); NaN when the label is in neither mask.

    L. R. Dice, "Measures of the amount of ecologic association between species", 1945.
    """
    return _ratio(2 * counts.true_positive, 2 * counts.true_positive + sum(counts[1:]))


def iou(counts: Overlap) -> float:
    """Intersection over union, TP / (TP + FP + FN); NaN when the label is in neither mask.

    P. Jaccard, "The distribution of the flora in the alpine zone", 1912.
    """
    return _ratio(counts.true_positive, sum(counts))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _histogram(array: NDArray[Any], top: int) -> NDArray[np.int64]:
    """Number of voxels of each value 0 ... top; other values are not counted."""
    total = np.zeros(top + 1, dtype=np.int64)
    # "K" walks the memory as it lies: counting needs no order, and so no copy.
    flat = array.ravel(order="K")
    for start in range(0, flat.size, _CHUNK_VOXELS):
        chunk = flat[start : start + _CHUNK_VOXELS]
        if chunk.min() < 0 or chunk.max() > top:
            chunk = chunk[(chunk >= 0) & (chunk <= top)]
        total += np.bincount(chunk, minlength=top + 1)
    return total
