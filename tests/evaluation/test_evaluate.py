"""The rules for labels that are absent, and the sums over cases, by hand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from medseg.core.errors import LabelError
from medseg.core.labels import LabelSet
from medseg.evaluation.evaluate import CaseScores, LabelScores, score_case, summarise

LABELS = LabelSet.from_names({1: "liver", 2: "spleen", 4: "aorta"})
SPACING_MM = (1.0, 2.0, 3.0)


def _row(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint8).reshape(-1, 1, 1)


def test_the_three_kinds_of_absence() -> None:
    scores = score_case(
        _row(1, 1, 0, 2, 0), _row(0, 1, 1, 0, 0), spacing_mm=SPACING_MM, labels=LABELS
    )
    liver = scores.labels[1]
    # Distances 0 and 1 mm in both directions; their 95th percentile is 0.95.
    expected = LabelScores(dice=0.5, iou=1 / 3, hd95_mm=0.95, nsd=1.0)
    assert asdict(liver) == pytest.approx(asdict(expected))
    spleen = scores.labels[2]
    assert (spleen.dice, spleen.iou, spleen.nsd) == (0.0, 0.0, 0.0)
    assert math.isnan(spleen.hd95_mm)
    assert not spleen.left_out
    assert scores.labels[4].left_out
    assert scores.mean_dice == pytest.approx(0.25)


def test_without_names_the_values_that_occur() -> None:
    scores = score_case(_row(7, 0, 0), _row(7, 0, 3), spacing_mm=SPACING_MM)
    assert list(scores.labels) == [3, 7]
    with pytest.raises(LabelError, match="65535"):
        score_case(np.array([[[70000]]]), np.array([[[1]]]), spacing_mm=SPACING_MM)


def test_tolerance_is_in_mm_along_each_axis() -> None:
    masks = np.zeros((2, 5, 5, 5), dtype=np.uint8)
    masks[0, 2, 2, 1], masks[1, 2, 2, 2] = 1, 1
    for tolerance_mm, expected in ((2.9, 0.0), (3.0, 1.0)):
        scores = score_case(
            *masks,
            spacing_mm=SPACING_MM,
            labels=LABELS.select(["liver"]),
            tolerance_mm=tolerance_mm,
        )
        assert scores.labels[1].nsd == expected


def test_summary_by_hand() -> None:
    cases = {
        "a": CaseScores({1: LabelScores(0.8, 0.7, 2.0, 0.9), 2: LabelScores(0.0, 0.0, nsd=0.0)}),
        "b": CaseScores({1: LabelScores(0.6, 0.5, 4.0, 0.7), 2: LabelScores()}),
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
    assert result["cases"]["b"]["2"] == dict.fromkeys(("dice", "iou", "hd95_mm", "nsd"))
    assert result["cases"]["a"]["1"]["nsd"] == 0.9
    assert result["definitions"]["tolerance_mm"] == 2.0


def test_summary_without_names_or_cases() -> None:
    result = summarise({"a": CaseScores({3: LabelScores(1.0, 1.0, 0.0, 1.0)})})
    assert result["labels"]["3"]["name"] == "label 3"
    empty = summarise({"a": CaseScores({})})
    assert empty["mean"]["dice"] is None
    assert empty["labels"] == {}
    assert math.isnan(CaseScores({}).mean_dice)
