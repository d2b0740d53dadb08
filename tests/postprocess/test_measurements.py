"""Measurements against figures that are known of boxes and ellipsoids."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.core.errors import GeometryError, InputError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.postprocess.measurements import measure
from tests.phantoms import lopsided_geometry, oblique_affine

LABELS = LabelSet.from_names({1: "ball", 2: "bar", 3: "absent", 4: "cut"})
SHAPE = (60, 50, 44)
SPACING_MM = (1.0, 1.25, 1.6)


def phantom() -> np.ndarray:
    places = np.indices(SHAPE).T * np.array(SPACING_MM)
    mask = (((places - np.array([22.0, 30.0, 30.0])) ** 2).sum(axis=-1).T <= 18.0**2).astype(
        np.uint8
    )
    mask[45:56, 20:24, 30] = 2
    mask[45:48, 2:5, 3] = 2
    mask[50:, :6, :5] = 4
    return mask


@pytest.mark.parametrize("turned", [False, True])
def test_figures(turned: bool) -> None:
    angles = (12.0, -9.0, 20.0) if turned else (0.0, 0.0, 0.0)
    geometry = Geometry(SHAPE, oblique_affine(SPACING_MM, angles_deg=angles))
    rng = np.random.Generator(np.random.PCG64(1))
    scan = rng.normal(40.0, 5.0, SHAPE).astype(np.float32)
    mask = phantom()
    found = measure(mask, geometry, LABELS, voxels=scan, workers=2)
    ball, bar, absent, cut = found.rows
    assert [row["status"] for row in found.rows] == ["whole", "whole", "absent", "cut off"]
    assert cut["cut_off_at"] == "RPI"
    assert absent["volume_ml"] is None
    assert absent["voxels"] == 0
    assert bar["parts"] == 2
    inside = mask == 1
    assert ball["volume_ml"] == pytest.approx(inside.sum() * np.prod(SPACING_MM) / 1000)
    assert ball["surface_mm2"] == pytest.approx(4 * np.pi * 18**2, rel=0.02)
    assert ball["sphericity"] == pytest.approx(1.0, abs=0.02)
    assert ball["diameter_3d_mm"] == pytest.approx(36.0, abs=1.6)
    assert ball["diameter_axial_mm"] == pytest.approx(36.0, abs=1.3)
    assert ball["perpendicular_axial_mm"] == pytest.approx(36.0, abs=1.3)
    assert ball["mean"] == pytest.approx(scan[inside].mean(), rel=1e-6)
    assert ball["median"] == pytest.approx(np.median(scan[inside]), rel=1e-6)
    assert ball["p95"] == pytest.approx(np.percentile(scan[inside], 95), rel=1e-6)
    # Of the bar's two parts the longer counts, not the way from one to the other.
    assert bar["diameter_axial_slice"] == 30
    assert bar["diameter_axial_mm"] == pytest.approx(np.hypot(11.0, 3 * 1.25), abs=0.8)
    centre = geometry.affine_ras[:3, :3] @ np.argwhere(inside).mean(axis=0)
    centre += geometry.affine_ras[:3, 3]
    got = [ball[f"centroid_{axis}_mm"] for axis in "xyz"]
    np.testing.assert_allclose(got, centre, atol=1e-6)
    corners = np.argwhere(inside)[:, None] + np.indices((2, 2, 2)).reshape(3, -1).T[None] - 0.5
    world = corners.reshape(-1, 3) @ geometry.affine_ras[:3, :3].T + geometry.affine_ras[:3, 3]
    low = [ball[f"box_min_{axis}_mm"] for axis in "xyz"]
    high = [ball[f"box_max_{axis}_mm"] for axis in "xyz"]
    np.testing.assert_allclose(low, world.min(axis=0), atol=1e-6)
    np.testing.assert_allclose(high, world.max(axis=0), atol=1e-6)


def test_the_order_of_axes_does_not_matter() -> None:
    geometry = Geometry(SHAPE, oblique_affine(SPACING_MM))
    mask = phantom()
    expected = measure(mask, geometry, LABELS).rows
    turned = mask.transpose(2, 0, 1)[:, ::-1]
    change = np.zeros((4, 4))
    change[2, 0] = change[1, 2] = change[3, 3] = 1.0
    change[0, 1], change[0, 3] = -1.0, SHAPE[0] - 1
    other = Geometry(turned.shape, geometry.affine_ras @ change)
    for row, again in zip(expected, measure(turned, other, LABELS).rows, strict=True):
        for column, figure in row.items():
            if isinstance(figure, float):
                assert again[column] == pytest.approx(figure, rel=1e-3, abs=1e-3), column
            else:
                assert again[column] == figure, column


def test_perpendicular_of_a_hollow_form() -> None:
    """Of an L the width is that of a leg, not of the box around it."""
    mask = np.zeros((40, 34, 3), dtype=np.uint8)
    mask[2:38, 2:6, 1] = mask[2:6, 2:32, 1] = 1
    geometry = Geometry(mask.shape, np.diag([1.0, 1.0, 2.0, 1.0]))
    (row,) = measure(mask, geometry, LABELS.select(["ball"])).rows
    assert row["diameter_axial_mm"] == pytest.approx(np.hypot(36, 30), abs=1.5)
    assert 4.0 < float(row["perpendicular_axial_mm"] or 0) < 12.0


def test_awkward_scans() -> None:
    geometry = lopsided_geometry((6, 5, 1))
    mask = np.zeros((6, 5, 1), dtype=np.uint8)
    mask[2, 2] = 1
    mask[4, 1:4] = 2
    scan = np.full((2, 6, 5, 1), np.nan, dtype=np.float32)
    scan[1] = 7.0
    found = measure(mask, geometry, LABELS, voxels=scan, channels=("t1", "t2"))
    dot, line = found.rows[:2]
    assert (dot["status"], dot["mean_t1"], dot["mean_t2"]) == ("whole", None, 7.0)
    assert dot["invalid_voxels_t1"] == 1
    assert dot["diameter_3d_mm"] == dot["diameter_axial_mm"]
    assert float(line["diameter_axial_mm"] or 0) > 2 * float(line["perpendicular_axial_mm"] or 0)
    assert set(found.columns) == set(dot)
    with pytest.raises(GeometryError, match="shape"):
        measure(mask, geometry, LABELS, voxels=scan[:, :3])
    with pytest.raises(InputError):
        measure(mask.astype(np.float32), geometry, LABELS)
