"""Predicted Dice: found again where the law is known, and intervals that hold what they say."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.core.profile import DiceModel
from medseg.quality.calibration import Sample, fit_dice_model, predict_dice


def masks(cases: int, *, seed: int) -> list[Sample]:
    """The Dice falls with an input, with the size of another beyond 2, and differs by label."""
    rng = np.random.default_rng(seed)
    found = []
    for case in range(cases):
        for label in ("easy", "hard"):
            sure, odd = rng.uniform(-2, 3), abs(rng.normal(0, 2))
            odds = 0.3 + sure - 0.8 * max(0.0, odd - 2) - 0.7 * (label == "hard")
            dice = 1 / (1 + np.exp(-odds)) + rng.normal(0, 0.03)
            inputs = {"sure": sure, "odd": odd, "noise": rng.normal()}
            found.append(Sample(label, inputs, float(np.clip(dice, 0, 1)), case))
    return found


def test_the_law_is_found_and_intervals_cover() -> None:
    model = fit_dice_model(masks(150, seed=0))
    assert model is not None
    test = masks(400, seed=1)
    got = np.array([predict_dice(model, one.label, one.inputs) for one in test])
    truth = np.array([one.dice for one in test])
    assert np.corrcoef(got[:, 0], truth)[0, 1] > 0.97
    assert np.abs(got[:, 0] - truth).mean() < 0.035
    assert 0.86 < ((truth >= got[:, 1]) & (truth <= got[:, 2])).mean() < 0.95
    assert ((got[:, 1] <= got[:, 0]) & (got[:, 0] <= got[:, 2])).all()


def test_few_masks_or_cases_teach_nothing() -> None:
    assert fit_dice_model(masks(10, seed=0)) is None
    alike = [Sample(one.label, one.inputs, one.dice, 1) for one in masks(60, seed=0)]
    assert fit_dice_model(alike) is None


def test_missing_inputs_and_labels_count_as_usual() -> None:
    model = fit_dice_model(masks(100, seed=0))
    assert model is not None
    usual = dict(zip(model.inputs, model.usual, strict=True))
    assert predict_dice(model, "easy", {}) == predict_dice(model, "easy", usual)
    low, high = (predict_dice(model, name, {})[0] for name in ("hard", "easy"))
    assert low < predict_dice(model, "unknown", {})[0] < high or low < high


def test_json_keeps_every_digit() -> None:
    model = fit_dice_model(masks(60, seed=0))
    assert model is not None
    again = DiceModel.model_validate_json(model.model_dump_json())
    for one in masks(5, seed=2):
        assert predict_dice(again, one.label, one.inputs) == predict_dice(
            model, one.label, one.inputs
        )


def test_extreme_inputs_stay_within_0_and_1() -> None:
    model = fit_dice_model(masks(60, seed=0))
    assert model is not None
    for value in (-1e6, 1e6):
        dice, low, high = predict_dice(model, "easy", {"sure": value})
        assert 0 <= low <= dice <= high <= 1


def test_only_labels_that_are_always_right_are_no_trouble() -> None:
    right = [Sample("one", {"sure": 1.0}, 1.0, case) for case in range(60)]
    model = fit_dice_model(right)
    assert model is not None
    assert predict_dice(model, "one", {"sure": 1.0})[0] == pytest.approx(1.0, abs=0.05)
