"""Places of slices: every figure worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.results import Prediction
from medseg.core.slices import SlicePlaces


def places(*along: float, step_mm: float = 2.0) -> SlicePlaces:
    """Slices along z at these multiples of the step."""
    return SlicePlaces(
        along, tuple(step_mm * k for k in along), tuple((5.0, -7.0, step_mm * k) for k in along)
    )


def grid(count: int) -> Geometry:
    affine = np.diag([-1.5, 0.5, 2.0, 1.0])
    affine[:3, 3] = 5, 7, 0
    return Geometry((4, 3, count), affine)


def test_even_slices_keep_their_grid() -> None:
    slices = places(0, 1, 2, 3)
    assert slices.even
    assert slices.header_geometry(grid(4)) == grid(4)
    assert slices.header_error_mm == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(slices.thickness_mm, [2, 2, 2, 2])
    assert places(0).even
    assert places(0).header_error_mm == 0


def test_a_missing_slice() -> None:
    slices = places(0, 1, 2, 4)
    assert not slices.even
    # The line by least squares through (0, 0), (1, 1), (2, 2), (3, 4) is 1.3 x - 0.2.
    header = slices.header_geometry(grid(5))
    assert header.shape == (4, 3, 4)
    np.testing.assert_allclose(header.affine_ras[:3, 2], [0, 0, 2.6], atol=1e-9)
    np.testing.assert_allclose(header.affine_ras[:3, 3], [5, 7, -0.4], atol=1e-9)
    np.testing.assert_allclose(header.affine_ras[:3, :2], grid(5).affine_ras[:3, :2])
    # The third slice is at 2, and the line at 2.4.
    assert slices.header_error_mm == pytest.approx(0.4 * 2.0)
    np.testing.assert_allclose(slices.thickness_mm, [2, 2, 3, 4])


def test_volumes_count_each_plane_by_its_thickness() -> None:
    labels = np.zeros((4, 3, 4), np.uint8)
    labels[:2, 0, 0] = 1
    labels[0, :, 3] = 2
    slices = places(0, 1, 2, 4)
    header = slices.header_geometry(grid(5))
    names = LabelSet.from_names({1: "low", 2: "high"})
    volumes = Prediction(labels, header, names, slices=slices).volumes_ml()
    # A pixel has 0.75 mm2: two of 2 mm, three of 4 mm.
    assert volumes == pytest.approx({"low": 2 * 0.75 * 2 / 1000, "high": 3 * 0.75 * 4 / 1000})
    even = Prediction(labels, grid(4), names, slices=places(0, 1, 2, 3)).volumes_ml()
    assert even == pytest.approx({"low": 2 * 1.5 / 1000, "high": 3 * 1.5 / 1000})
