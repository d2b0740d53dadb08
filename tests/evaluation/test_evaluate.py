"""The rules for labels that are absent, and the sums over cases, by hand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from medseg.core.errors import GeometryError, LabelError
from medseg.core.labels import LabelSet
from medseg.evaluation.evaluate import (
    CaseScores,
    LabelScores,
    ScoreOptions,
    score_case,
    summarise,
)
from medseg.evaluation.masks import LayeredMasks

LABELS = LabelSet.from_names({1: "liver", 2: "spleen", 4: "aorta"})
SPACING_MM = (1.0, 2.0, 3.0)


def _row(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint8).reshape(-1, 1, 1)


def _known(scores: LabelScores) -> dict[str, float]:
    return {metric: value for metric, value in asdict(scores).items() if not math.isnan(value)}


def test_the_three_kinds_of_absence() -> None:
    scores = score_case(
        _row(1, 1, 0, 2, 0), _row(0, 1, 1, 0, 4), spacing_mm=SPACING_MM, labels=LABELS
    )
    # Five voxels of 6 mm3. Distances 0 and 1 mm in both directions; their 95th percentile is
    # 0.95. The surface of a row is its two ends, here 1 mm from those of the other row.
    # Kappa: 3 of 5 voxels agree; by chance 2/5 * 2/5 + 3/5 * 3/5 = 13/25 would.
    assert _known(scores.labels[1]) == pytest.approx(
        {
            "dice": 0.5, "iou": 1 / 3, "precision": 0.5, "recall": 0.5, "kappa": 2 / 12,
            "volume_difference": 0.0, "volume_difference_ml": 0.0, "hd_mm": 1.0, "hd95_mm": 0.95,
            "assd_mm": 0.5, "nsd": 1.0, "nsd_voxel_border": 1.0, "hd95_element_mm": 1.0,
            "assd_element_mm": 1.0, "prediction_ml": 0.012, "reference_ml": 0.012,
        }
    )  # fmt: skip
    zeros = {"dice": 0.0, "iou": 0.0, "kappa": 0.0, "nsd": 0.0, "nsd_voxel_border": 0.0}
    spleen, aorta = scores.labels[2], scores.labels[4]
    assert _known(spleen) == pytest.approx(
        zeros | {
            "precision": 0.0, "prediction_ml": 0.006, "reference_ml": 0.0,
            "volume_difference_ml": 0.006, "false_positive_ml": 0.006,
        }
    )  # fmt: skip
    assert _known(aorta) == pytest.approx(
        zeros | {
            "recall": 0.0, "prediction_ml": 0.0, "reference_ml": 0.006,
            "volume_difference": -1.0, "volume_difference_ml": -0.006,
        }
    )  # fmt: skip
    assert not spleen.left_out
    assert scores.mean_dice == pytest.approx(0.5 / 3)
    nowhere = score_case(_row(0, 2), _row(0, 2), spacing_mm=SPACING_MM, labels=LABELS).labels[1]
    assert nowhere.left_out
    assert _known(nowhere) == {"false_positive_ml": 0.0, "prediction_ml": 0.0, "reference_ml": 0.0}


def test_volume_of_a_sheared_voxel() -> None:
    options = ScoreOptions(voxel_mm3=5.0)
    scores = score_case(_row(1, 1), _row(1, 0), spacing_mm=SPACING_MM, options=options)
    assert scores.labels[1].prediction_ml == pytest.approx(0.01)


def test_threads_and_layers_change_nothing() -> None:
    rng = np.random.default_rng(5)
    prediction, reference = rng.integers(0, 5, (2, 13, 9, 7), dtype=np.uint8)
    expected = score_case(prediction, reference, spacing_mm=SPACING_MM)
    layers = [
        LayeredMasks.cut(mask.shape, ((value, mask == value) for value in (1, 2, 3, 4, 9)))
        for mask in (prediction, reference)
    ]
    for masks in ((prediction.astype(np.int64), np.asfortranarray(reference)), layers):
        for workers in (1, 3):
            found = score_case(*masks, spacing_mm=SPACING_MM, options=ScoreOptions(workers=workers))
            assert list(found.labels) == [1, 2, 3, 4]
            for value, scores in expected.labels.items():
                assert _known(found.labels[value]) == _known(scores)


def test_masks_that_overlap() -> None:
    shape = (9, 8, 7)
    organ, tumour = np.zeros((2, *shape), dtype=np.uint8)
    organ[1:8, 1:6, 1:6], tumour[3:5, 2:4, 2:5] = 1, 255
    both = LayeredMasks.cut(shape, [(1, organ), (2, tumour), (3, np.zeros(shape))])
    scores = score_case(both, both, spacing_mm=SPACING_MM).labels
    assert {value: row.dice for value, row in scores.items()} == {1: 1.0, 2: 1.0}
    # The label image loses the part of the organ under the tumour.
    painted = both.painted(np.uint8)
    image = score_case(painted, both, spacing_mm=SPACING_MM).labels
    assert image[1].dice == pytest.approx(2 * (175 - 12) / (2 * 175 - 12))
    assert image[2].dice == 1.0
    with pytest.raises(GeometryError, match=r"\(9, 8, 6\)"):
        LayeredMasks.cut(shape, [(1, organ[..., :6])])


@pytest.mark.parametrize("shape", [(7, 6, 5), (9, 8, 1), (1, 9, 8), (6, 1, 1), (1, 1, 1)])
def test_degenerate_masks(shape: tuple[int, int, int]) -> None:
    full, empty = np.ones(shape, dtype=np.uint8), np.zeros(shape, dtype=np.uint8)
    one = empty.copy()
    one[0, 0, 0] = 1
    label = LABELS.select(["liver"])
    for first, second in ((full, full), (one, one), (full, one), (empty, full), (empty, empty)):
        row = score_case(first, second, spacing_mm=SPACING_MM, labels=label).labels[1]
        equal = bool((first == second).all())
        if first.any() and second.any():
            assert (row.dice == 1.0, row.hd_mm == 0.0, row.hd95_element_mm == 0.0) == (equal,) * 3
            assert math.isfinite(row.assd_mm)
            assert 0.0 <= row.nsd <= 1.0


def test_three_hundred_labels_with_gaps() -> None:
    rng = np.random.default_rng(0)
    mask = np.repeat(rng.permutation(300)[:, None], 4, axis=1).reshape(20, 15, 4) * 7 + 1
    scores = score_case(mask.astype(np.uint16), mask, spacing_mm=SPACING_MM)
    assert len(scores.labels) == 300
    assert scores.mean_dice == 1.0


def test_without_names_the_values_that_occur() -> None:
    scores = score_case(_row(7, 0, 0), _row(7, 0, 3), spacing_mm=SPACING_MM)
    assert list(scores.labels) == [3, 7]
    with pytest.raises(LabelError, match="65535"):
        score_case(np.array([[[70000]]]), np.array([[[1]]]), spacing_mm=SPACING_MM)


def test_tolerance_is_in_mm_along_each_axis() -> None:
    masks = np.zeros((2, 5, 5, 5), dtype=np.uint8)
    masks[0, 2, 2, 1], masks[1, 2, 2, 2] = 1, 1
    # The corners between the two voxels belong to both surfaces: half of each.
    for tolerance_mm, expected in ((2.9, 0.0), (3.0, 1.0)):
        scores = score_case(
            *masks,
            spacing_mm=SPACING_MM,
            labels=LABELS.select(["liver"]),
            tolerance_mm=tolerance_mm,
        )
        assert scores.labels[1].nsd_voxel_border == expected
        assert scores.labels[1].nsd == max(0.5, expected)


def test_summary_by_hand() -> None:
    cases = {
        "a": CaseScores(
            {1: LabelScores(dice=0.8, hd95_mm=2.0, nsd=0.9), 2: LabelScores(dice=0.0, nsd=0.0)}
        ),
        "b": CaseScores({1: LabelScores(dice=0.6, hd95_mm=4.0, nsd=0.7), 2: LabelScores()}),
    }
    result = summarise(cases, LABELS, tolerance_mm=2.0)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    liver, spleen, aorta = (result["labels"][value] for value in ("1", "2", "4"))
    assert liver["name"] == "liver"
    assert liver["dice"] == pytest.approx(0.7)
    assert liver["hd95_mm"] == pytest.approx(3.0)
    assert liver["dice_interval"] == pytest.approx([0.6, 0.8])
    assert (liver["cases"], liver["left_out"], liver["undefined"]) == (2, 0, 0)
    assert spleen["dice"] == 0.0
    assert spleen["dice_interval"] == [None, None]
    assert spleen["hd95_mm"] is None
    assert (spleen["cases"], spleen["left_out"], spleen["undefined"]) == (1, 1, 1)
    assert aorta["dice"] is None
    assert (aorta["cases"], aorta["left_out"], aorta["undefined"]) == (0, 2, 0)
    # Mean over the labels that have a mean: liver 0.7, spleen 0.
    assert result["mean"]["dice"] == pytest.approx(0.35)
    assert result["mean"]["hd95_mm"] == pytest.approx(3.0)
    assert set(result["cases"]["b"]["2"].values()) == {None}
    assert "lesion_f1" not in result["mean"]
    assert result["cases"]["a"]["1"]["nsd"] == 0.9
    assert result["definitions"]["tolerance_mm"] == 2.0


def test_summary_without_names_or_cases() -> None:
    result = summarise({"a": CaseScores({3: LabelScores(dice=1.0)})})
    assert result["labels"]["3"]["name"] == "label 3"
    empty = summarise({"a": CaseScores({})})
    assert empty["mean"]["dice"] is None
    assert empty["labels"] == {}
    assert math.isnan(CaseScores({}).mean_dice)


@pytest.mark.parametrize("kind", ["u1", ">u2", "u8", "i1", ">i4", "i8", "f4"])
def test_number_types_and_memory_orders(kind: str) -> None:
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 3, (2, 9, 8, 7), dtype=np.uint8)
    expected = score_case(*masks, spacing_mm=SPACING_MM)
    orders = (
        np.asfortranarray,
        lambda mask: np.repeat(mask, 2, axis=1)[:, ::2],
        lambda mask: np.ascontiguousarray(mask[:, ::-1])[:, ::-1],
        lambda mask: np.moveaxis(np.ascontiguousarray(np.moveaxis(mask, 1, 0)), 0, 1),
    )
    for order in orders:
        found = score_case(*(order(mask.astype(kind)) for mask in masks), spacing_mm=SPACING_MM)
        assert repr(found) == repr(expected)
    whole = score_case(masks[0] > 0, masks[1] > 0, spacing_mm=SPACING_MM)
    assert 0 < whole.labels[1].dice < 1
