"""All figures of one label in one case, and the one place that says what absence means.

======================  ==============  ===============  ================
label is in             both masks      reference only   prediction only
======================  ==============  ===============  ================
dice, iou, nsd ...      measured        0                0
precision               measured        undefined        0
recall                  measured        0                undefined
volume_difference       measured        -1               undefined
distances (``*_mm``)    measured        undefined        undefined
false_positive_ml       undefined       undefined        its volume
======================  ==============  ===============  ================

In neither mask: left out of every mean, except that ``false_positive_ml`` is 0. Undefined is
NaN here and null in JSON; each mean tells over how many cases it was taken.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.lesions import lesion_scores
from medseg.evaluation.overlap import (
    Overlap,
    cohen_kappa,
    dice,
    iou,
    precision,
    recall,
    volume_difference,
)
from medseg.evaluation.surface import assd, crop_distances, hd, hd95, nsd

_NAN = float("nan")


@dataclass(frozen=True)
class LabelScores:
    """Scores of one label in one case; NaN where undefined. docs/metrics.md defines each.

    Attributes:
        dice: 2 TP / (2 TP + FP + FN).
        iou: TP / (TP + FP + FN).
        precision: TP / (TP + FP).
        recall: TP / (TP + FN).
        kappa: Cohen's kappa over all voxels of the image.
        volume_difference: (prediction - reference) / reference.
        volume_difference_ml: Prediction - reference.
        hd_mm: Hausdorff distance (MSSD) between voxel borders.
        hd95_mm: Larger of the two directed 95th percentiles between voxel borders.
        assd_mm: Average symmetric surface distance between voxel borders.
        nsd: Normalised surface Dice, surface elements weighted by their area.
        nsd_voxel_border: The same with voxel borders.
        hd95_element_mm: As ``hd95_mm``, between surface elements weighted by their area.
        assd_element_mm: As ``assd_mm``, between surface elements weighted by their area.
        false_positive_ml: Volume of the prediction where the reference is empty.
        prediction_ml: Volume of the prediction.
        reference_ml: Volume of the reference.
        lesion_f1: F1 of lesions found, where asked for.
        panoptic_quality: Of lesions, where asked for.
        recognition_quality: F1 of lesions matched with an IoU above 0.5, where asked for.
    """

    dice: float = _NAN
    iou: float = _NAN
    precision: float = _NAN
    recall: float = _NAN
    kappa: float = _NAN
    volume_difference: float = _NAN
    volume_difference_ml: float = _NAN
    hd_mm: float = _NAN
    hd95_mm: float = _NAN
    assd_mm: float = _NAN
    nsd: float = _NAN
    nsd_voxel_border: float = _NAN
    hd95_element_mm: float = _NAN
    assd_element_mm: float = _NAN
    false_positive_ml: float = _NAN
    prediction_ml: float = _NAN
    reference_ml: float = _NAN
    lesion_f1: float = _NAN
    panoptic_quality: float = _NAN
    recognition_quality: float = _NAN

    @property
    def left_out(self) -> bool:
        """Whether the label is in neither mask."""
        return bool(np.isnan(self.dice))


METRICS = tuple(field.name for field in fields(LabelScores))
LESION_METRICS = ("lesion_f1", "panoptic_quality", "recognition_quality")


@dataclass(frozen=True)
class Ruler:
    """What holds for all labels of a case.

    Attributes:
        spacing_mm: Voxel size along I, J, K.
        voxel_ml: Volume of a voxel.
        voxels: Of the whole image.
        axes: Along which the image extends.
        tolerance_mm: How far a border may be off for NSD.
    """

    spacing_mm: tuple[float, ...]
    voxel_ml: float
    voxels: int
    axes: tuple[int, ...]
    tolerance_mm: float


def score_label(
    prediction: NDArray[np.bool_] | None,
    reference: NDArray[np.bool_] | None,
    ruler: Ruler,
    *,
    lesions: bool = False,
) -> LabelScores:
    """Score one label.

    Args:
        prediction: (I, J, K), cut to the box around both masks; None where it lacks the label.
        reference: Of the same shape; None where it lacks the label.
        ruler: What holds for all labels.
        lesions: Also score its lesions.
    """
    size = 0 if prediction is None else int(np.count_nonzero(prediction))
    wanted = 0 if reference is None else int(np.count_nonzero(reference))
    volumes = {
        "prediction_ml": size * ruler.voxel_ml,
        "reference_ml": wanted * ruler.voxel_ml,
    }
    if not wanted:
        volumes["false_positive_ml"] = volumes["prediction_ml"]
    if prediction is None or reference is None or not (size and wanted):
        if not (size or wanted):
            return LabelScores(**volumes)
        surfaces = {"nsd": 0.0, "nsd_voxel_border": 0.0}
        found = dict.fromkeys(LESION_METRICS, 0.0) if lesions else {}
        return _with_overlap(Overlap(0, size, wanted), ruler, volumes | surfaces | found)
    both = int(np.count_nonzero(prediction & reference))
    surfaces = _surfaces(prediction, reference, ruler)
    found = {}
    if lesions:
        scored = lesion_scores(prediction, reference)
        found = {metric: getattr(scored, metric) for metric in LESION_METRICS}
    counts = Overlap(both, size - both, wanted - both)
    return _with_overlap(counts, ruler, volumes | surfaces | found)


def _with_overlap(counts: Overlap, ruler: Ruler, others: dict[str, float]) -> LabelScores:
    return LabelScores(
        dice=dice(counts), iou=iou(counts), precision=precision(counts), recall=recall(counts),
        kappa=cohen_kappa(counts, ruler.voxels), volume_difference=volume_difference(counts),
        volume_difference_ml=others["prediction_ml"] - others["reference_ml"], **others,
    )  # fmt: skip


def _surfaces(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], ruler: Ruler
) -> dict[str, float]:
    borders, elements = (
        crop_distances(
            prediction, reference, spacing_mm=ruler.spacing_mm, axes=ruler.axes,
            definition=definition,
        )
        for definition in ("voxel-border", "surface-element")
    )  # fmt: skip
    return {
        "hd_mm": hd(borders),
        "hd95_mm": hd95(borders),
        "assd_mm": assd(borders),
        "nsd": nsd(elements, ruler.tolerance_mm),
        "nsd_voxel_border": nsd(borders, ruler.tolerance_mm),
        "hd95_element_mm": hd95(elements),
        "assd_element_mm": assd(elements),
    }
