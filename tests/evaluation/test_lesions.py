"""Lesions by hand, and panoptic quality against MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_panoptic_quality
from scipy import ndimage

from medseg.core.errors import GeometryError
from medseg.evaluation.lesions import lesion_scores


def test_by_hand() -> None:
    prediction, reference = np.zeros((2, 12, 9, 6), dtype=bool)
    reference[1:5, 1:4, 1:3] = True  # 24 voxels, matched by 18 of them and none beside: IoU 3/4
    prediction[1:4, 1:4, 1:3] = True
    reference[8:11, 1:3, 1:3] = True  # 12 voxels, touched by one
    prediction[10, 2, 2] = True
    prediction[1, 7, 4] = True  # nothing there
    reference[7, 7, 1] = True  # missed
    reference[11, 8, 5] = True  # missed
    scores = lesion_scores(prediction, reference)
    assert (scores.found, scores.missed, scores.false) == (2, 2, 1)
    assert scores.lesion_f1 == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert scores.recognition_quality == pytest.approx(1 / (1 + 0.5 * (2 + 3)))
    assert scores.panoptic_quality == pytest.approx(0.75 / 3.5)


@pytest.mark.parametrize("metric", ["pq", "rq"])
@pytest.mark.parametrize("seed", range(4))
def test_against_monai(metric: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(30, 26, 14)), 1.6)
    moved = noise + 0.6 * noise.std() * rng.normal(size=noise.shape)
    smooth = ndimage.gaussian_filter(moved, 0.7)
    masks = [array > np.percentile(array, 88) for array in (smooth, noise)]
    numbered = [ndimage.label(mask, np.ones((3, 3, 3)))[0] for mask in masks]
    tensors = [torch.from_numpy(array.astype(np.int64)) for array in numbered]
    expected = float(compute_panoptic_quality(*tensors, metric_name=metric))
    name = {"pq": "panoptic_quality", "rq": "recognition_quality"}[metric]
    assert 0 < expected < 1
    assert getattr(lesion_scores(*masks), name) == pytest.approx(expected, abs=1e-5)
    # Instance numbers with gaps, as they come out of a watershed.
    assert getattr(lesion_scores(numbered[0] * 7, numbered[1]), name) == pytest.approx(
        expected, abs=1e-5
    )


def test_nothing_to_find() -> None:
    empty, one = np.zeros((2, 4, 3, 2), dtype=bool)
    one[0, 0, 0] = True
    assert math.isnan(lesion_scores(empty, empty).lesion_f1)
    assert lesion_scores(one, empty).lesion_f1 == lesion_scores(empty, one).panoptic_quality == 0.0
    assert lesion_scores(one, one).panoptic_quality == 1.0
    with pytest.raises(GeometryError):
        lesion_scores(one[:2], one)
