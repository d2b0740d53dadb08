"""Calibration error by hand, and against scikit-learn's calibration curve."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from medseg.core.errors import GeometryError, InputError
from medseg.evaluation import calibration
from medseg.evaluation.calibration import expected_calibration_error


def test_by_hand() -> None:
    # Sure with 0.9, 0.9, 0.6, 0.6; right, wrong, right, right.
    foreground = np.array([0.9, 0.1, 0.6, 0.4]).reshape(1, 4, 1, 1)
    reference = np.array([1, 1, 1, 0]).reshape(4, 1, 1)
    expected = (2 * abs(0.9 - 0.5) + 2 * abs(0.6 - 1.0)) / 4
    assert expected_calibration_error(foreground, reference, bins=10) == pytest.approx(expected)
    both = np.concatenate([1 - foreground, foreground])
    assert expected_calibration_error(both, reference, bins=10) == pytest.approx(expected)


def test_against_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_CHUNK_VOXELS", 100)
    rng = np.random.default_rng(2)
    table = rng.dirichlet(np.ones(4), size=(9, 8, 7)).astype(np.float32)
    probabilities = np.moveaxis(table, -1, 0)
    reference = (rng.random((9, 8, 7, 1)) > table.cumsum(axis=-1)[..., :3]).sum(axis=-1)
    sure, right = probabilities.max(axis=0).ravel(), probabilities.argmax(axis=0) == reference
    accuracy, confidence = calibration_curve(right.ravel(), sure, n_bins=15)
    # It gives no counts: they are those of its bins.
    counts = np.histogram(sure, np.linspace(0, 1, 16))[0]
    expected = np.average(np.abs(accuracy - confidence), weights=counts[counts > 0])
    found = expected_calibration_error(probabilities, reference)
    assert found == pytest.approx(expected, abs=1e-6)


def test_bad_input() -> None:
    reference = np.zeros((4, 3, 2), dtype=np.uint8)
    for wrong in (2.0, -0.5, np.nan):
        with pytest.raises(InputError, match="0 to 1"):
            expected_calibration_error(np.full((2, 4, 3, 2), wrong), reference)
    with pytest.raises(GeometryError):
        expected_calibration_error(np.zeros((2, 4, 3, 3)), reference)
