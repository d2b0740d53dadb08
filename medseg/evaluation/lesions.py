"""Scores of single lesions (or other instances): how many are found, and how well.

The parts of a mask that hang together (26 neighbours in a volume, 8 in a flat image) are
its lesions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.masks import check_shapes
from medseg.postprocess.components import label_components


@dataclass(frozen=True)
class LesionScores:
    """How the lesions of one label were found; NaN where neither mask has one.

    Attributes:
        lesion_f1: F1 of detection: a lesion of the reference counts as found, and one of the
            prediction as right, when it shares a voxel with the other mask. The F1 is
            2 found / (2 found + false + missed).
        panoptic_quality: Sum of the IoU of matched pairs (those above 0.5, so that no lesion
            is matched twice) over matched + half of the rest. A. Kirillov et al., "Panoptic
            segmentation", 2019.
        recognition_quality: F1 of those matches.
        found: Lesions of the reference that share a voxel with the prediction.
        missed: Lesions of the reference that do not.
        false: Lesions of the prediction that share none with the reference.
    """

    lesion_f1: float
    panoptic_quality: float
    recognition_quality: float
    found: int
    missed: int
    false: int


def lesion_scores(prediction: NDArray[Any], reference: NDArray[Any]) -> LesionScores:
    """Compare the lesions of two masks.

    Args:
        prediction: (I, J, K) booleans of one label, or instance numbers (0 is background).
        reference: Of the same shape, likewise.

    Raises:
        GeometryError: The shapes differ.
    """
    check_shapes(prediction.shape, reference.shape)
    (mine, mine_count), (theirs, theirs_count) = (
        _instances(mask) for mask in (prediction, reference)
    )
    shared = np.flatnonzero((mine > 0) & (theirs > 0))
    pairs, voxels = np.unique(
        np.stack([mine.ravel()[shared], theirs.ravel()[shared]]), axis=1, return_counts=True
    )
    found = len(np.unique(pairs[1]))
    false = mine_count - len(np.unique(pairs[0]))
    missed = theirs_count - found
    sizes = [
        np.bincount(mask.ravel(), minlength=count + 1)
        for mask, count in ((mine, mine_count), (theirs, theirs_count))
    ]
    iou = voxels / (sizes[0][pairs[0]] + sizes[1][pairs[1]] - voxels)
    matched = iou[iou > 0.5]
    either = (mine_count + theirs_count) / 2
    return LesionScores(
        lesion_f1=_ratio(2 * found, 2 * found + false + missed),
        panoptic_quality=_ratio(float(matched.sum()), either),
        recognition_quality=_ratio(len(matched), either),
        found=found, missed=missed, false=false,
    )  # fmt: skip


def _instances(mask: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
    if mask.dtype.kind == "b":
        parts, count = label_components(np.ascontiguousarray(mask.view(np.uint8)), 26)
        return parts.astype(np.int64), count
    # Numbers may have gaps; the count of instances must not.
    names, numbers = np.unique(np.append(mask.ravel(), 0), return_inverse=True)
    shift = int(np.flatnonzero(names == 0)[0])
    ordered = np.where(numbers == shift, 0, numbers + (numbers < shift))[:-1]
    return ordered.reshape(mask.shape).astype(np.int64), len(names) - 1


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
