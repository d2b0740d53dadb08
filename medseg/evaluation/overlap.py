"""Overlap of two label masks: counts, and what follows from them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.masks import check_shapes

# Large enough that NumPy's loops dominate, small enough that the int64 copy which bincount
# makes stays far below the size of a scan.
_CHUNK_VOXELS = 1 << 22


class Overlap(NamedTuple):
    """Voxel counts of one label."""

    true_positive: int
    false_positive: int
    false_negative: int

    @property
    def predicted(self) -> int:
        """Voxels of the prediction."""
        return self.true_positive + self.false_positive

    @property
    def referred(self) -> int:
        """Voxels of the reference."""
        return self.true_positive + self.false_negative


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
    check_shapes(prediction.shape, reference.shape)
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


def precision(counts: Overlap) -> float:
    """Share of the prediction that is right, TP / (TP + FP); NaN when it is empty."""
    return _ratio(counts.true_positive, counts.predicted)


def recall(counts: Overlap) -> float:
    """Share of the reference that is found, TP / (TP + FN); NaN when it is empty."""
    return _ratio(counts.true_positive, counts.referred)


def volume_difference(counts: Overlap) -> float:
    """Relative volume difference, (prediction - reference) / reference; NaN without reference.

    Its absolute value in percent is the RAVD of T. Heimann et al., 2009.
    """
    return _ratio(counts.predicted - counts.referred, counts.referred)


def cohen_kappa(counts: Overlap, voxels: int) -> float:
    """Agreement beyond chance on "label or not" over all voxels of the image.

    J. Cohen, "A coefficient of agreement for nominal scales", 1960. NaN when the label is in
    no voxel or in every voxel of both masks: then chance agrees as well.

    Args:
        counts: Of one label.
        voxels: Of the whole image.
    """
    rest = voxels - sum(counts)
    observed = (counts.true_positive + rest) / voxels
    by_chance = (counts.predicted / voxels) * (counts.referred / voxels) + (
        (voxels - counts.predicted) / voxels
    ) * ((voxels - counts.referred) / voxels)
    return (observed - by_chance) / (1 - by_chance) if by_chance < 1 else float("nan")


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
