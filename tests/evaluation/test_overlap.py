"""Overlap by hand, against MONAI, scikit-learn and MedPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from medpy.metric import binary
from monai.metrics import compute_dice, compute_iou
from sklearn import metrics as sklearn_metrics

from medseg.core.errors import GeometryError
from medseg.evaluation import overlap
from medseg.evaluation.overlap import (
    Overlap,
    cohen_kappa,
    dice,
    iou,
    overlap_counts,
    precision,
    recall,
    volume_difference,
)


def test_by_hand() -> None:
    prediction = np.array([0, 1, 1, 1, 2, 2, 9], dtype=np.uint8).reshape(7, 1, 1)
    reference = np.array([1, 1, 1, 2, 2, 0, 0], dtype=np.int64).reshape(7, 1, 1)
    counts = overlap_counts(prediction, reference, [2, 1, 5])
    assert counts == {2: Overlap(1, 1, 1), 1: Overlap(2, 1, 1), 5: Overlap(0, 0, 0)}
    assert list(counts) == [2, 1, 5]
    assert dice(counts[1]) == pytest.approx(4 / 6)
    assert iou(counts[1]) == pytest.approx(2 / 4)


def test_nothing_in_either_is_undefined() -> None:
    assert math.isnan(dice(Overlap(0, 0, 0)))
    assert math.isnan(iou(Overlap(0, 0, 0)))
    assert dice(Overlap(0, 3, 0)) == iou(Overlap(0, 0, 4)) == 0.0


@pytest.mark.parametrize("shape", [(12, 9, 7), (15, 8, 1)])
def test_against_monai(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_CHUNK_VOXELS", 100)
    rng = np.random.default_rng(2)
    # Different memory orders: counting must not depend on them.
    prediction = rng.integers(0, 6, shape).astype(np.uint16)
    reference = np.asfortranarray(np.where(rng.random(shape) < 0.6, prediction, 3)).astype(np.int32)
    values = [1, 2, 3, 4, 5]
    counts = overlap_counts(prediction, reference, values)
    hot = [
        torch.from_numpy(np.stack([mask == v for v in values])[None].astype(np.float32))
        for mask in (prediction, reference)
    ]
    expected = compute_dice(*hot, include_background=True)[0].tolist()
    assert [dice(counts[v]) for v in values] == pytest.approx(expected, abs=1e-6)
    expected = compute_iou(*hot, include_background=True)[0].tolist()
    assert [iou(counts[v]) for v in values] == pytest.approx(expected, abs=1e-6)


def test_against_scikit_learn_and_medpy() -> None:
    rng = np.random.default_rng(4)
    for share in (0.02, 0.4, 0.97):
        prediction, reference = rng.random((2, 11, 9, 7)) < share
        prediction[0, 0, 0] = reference[0, 0, 0] = True
        counts = overlap_counts(prediction.view(np.uint8), reference.view(np.uint8), [1])[1]
        flat = reference.ravel(), prediction.ravel()
        assert precision(counts) == pytest.approx(sklearn_metrics.precision_score(*flat))
        assert recall(counts) == pytest.approx(sklearn_metrics.recall_score(*flat))
        assert dice(counts) == pytest.approx(sklearn_metrics.f1_score(*flat))
        assert iou(counts) == pytest.approx(sklearn_metrics.jaccard_score(*flat))
        kappa = cohen_kappa(counts, prediction.size)
        assert kappa == pytest.approx(sklearn_metrics.cohen_kappa_score(*flat))
        assert volume_difference(counts) == pytest.approx(binary.ravd(prediction, reference))
        assert precision(counts) == pytest.approx(binary.precision(prediction, reference))


def test_ratios_by_hand() -> None:
    counts = Overlap(6, 2, 4)
    assert (precision(counts), recall(counts)) == (0.75, 0.6)
    assert volume_difference(counts) == pytest.approx(-0.2)
    # 14 of 20 agree; by chance 0.4 * 0.5 + 0.6 * 0.5 would.
    assert cohen_kappa(counts, 20) == pytest.approx((0.7 - 0.5) / 0.5)
    assert math.isnan(precision(Overlap(0, 0, 3)))
    assert math.isnan(recall(Overlap(0, 3, 0)))
    assert math.isnan(volume_difference(Overlap(0, 3, 0)))
    assert math.isnan(cohen_kappa(Overlap(8, 0, 0), 8))


def test_values_outside_are_background() -> None:
    prediction = np.array([[[-4, 2, 10**9]]])
    reference = np.array([[[2, 2, 10**9]]])
    assert overlap_counts(prediction, reference, [2]) == {2: Overlap(1, 0, 1)}
    assert overlap_counts(prediction, reference, []) == {}


def test_shapes_must_agree() -> None:
    mask = np.zeros((3, 4, 5), dtype=np.uint8)
    with pytest.raises(GeometryError, match=r"\(3, 4, 5\)"):
        overlap_counts(mask[:2], mask, [1])
