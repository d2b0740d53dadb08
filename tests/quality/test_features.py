"""Figures of masks: against hand-computed values, and the same whatever the orientation."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.core.geometry import ALL_ORIENTATIONS, Geometry
from medseg.core.labels import LabelSet
from medseg.quality.features import CaseLook, Scale, look_at_case
from tests.phantoms import oblique_affine

LABELS = LabelSet.from_names({1: "box", 2: "rest", 5: "never"})
STEPS_MM = (1.5, 2.0, 3.5)


def grid(shape: tuple[int, int, int]) -> Geometry:
    return Geometry(shape, oblique_affine(STEPS_MM, angles_deg=(12.0, -9.0, 20.0)))


def two_boxes() -> np.ndarray:
    mask = np.zeros((22, 17, 13), np.uint8)
    mask[4:14, 3:9, 5:9] = 1
    mask[15:20, 10:14, 4:8] = 2
    mask[20, 15, 10] = 2
    return mask


def test_figures_of_a_box() -> None:
    mask = two_boxes()
    look = look_at_case(mask, grid(mask.shape), LABELS).labels["box"]
    sides = np.array([10, 6, 4]) * np.array(STEPS_MM)
    volume_mm3 = float(np.prod(sides))
    assert look.volume_ml == pytest.approx(volume_mm3 / 1000)
    assert look.figures["volume"] == pytest.approx(np.log(volume_mm3))
    # A side of L has the variance L^2 / 12; the ellipsoid of these moments is 12.66 % larger.
    larger = 4 / 3 * np.pi * (5 / 12) ** 1.5
    assert look.figures["fullness"] == pytest.approx(-np.log(larger))
    a, b, c = sorted(sides)
    assert look.figures["elongation"] == pytest.approx(np.log(c / b))
    assert look.figures["flatness"] == pytest.approx(np.log(b / a))
    assert (look.parts, look.cut_at) == (1, "")
    centre = grid(mask.shape).affine_ras @ np.array([8.5, 5.5, 6.5, 1.0])
    assert look.centre_mm == pytest.approx(centre[:3])


def test_parts_and_strays() -> None:
    mask = two_boxes()
    look = look_at_case(mask, grid(mask.shape), LABELS).labels["rest"]
    assert look.parts == 2
    assert look.figures["stray share"] == pytest.approx(1 / 81)


def test_a_ball_is_nearly_a_sphere() -> None:
    places = np.stack(np.meshgrid(*(np.arange(n) for n in (33, 25, 17)), indexing="ij"), axis=-1)
    middle, radius_mm = np.array([16, 12, 8]), 20.0
    mask = (np.linalg.norm((places - middle) * STEPS_MM, axis=-1) < radius_mm).astype(np.uint8)
    look = look_at_case(mask, grid(mask.shape), LABELS).labels["box"]
    assert look.figures["sphericity"] == pytest.approx(0.0, abs=0.03)
    assert look.figures["fullness"] == pytest.approx(0.0, abs=0.02)


def test_intensities_against_numpy() -> None:
    mask = two_boxes()
    values = np.random.default_rng(3).normal(0, 5, mask.shape) + 40.0 * (mask == 1)
    for absolute in (True, False):
        look = look_at_case(
            mask, grid(mask.shape), LABELS, voxels=values[None], scale=Scale((absolute,))
        )
        inside = values[mask == 1]
        low, high = np.percentile(values, [1, 99])
        span = 1.0 if absolute else high - low
        start = 0.0 if absolute else low
        found = look.labels["box"].figures
        assert found["mean 0"] == pytest.approx((inside.mean() - start) / span)
        assert found["dark end 0"] == pytest.approx((np.percentile(inside, 10) - start) / span)
        assert found["contrast 0"] == pytest.approx(40.0 / span, rel=0.05)
        assert look.labels["box"].figures["edge 0"] >= found["contrast 0"]
        median = look.scan["intensity 0 p50"]
        assert median == pytest.approx((np.percentile(values, 50) - start) / span)


def test_nothing_depends_on_the_orientation() -> None:
    mask, geometry = two_boxes(), grid(two_boxes().shape)
    values = np.random.default_rng(0).normal(size=mask.shape)
    first = look_at_case(mask, geometry, LABELS, voxels=values[None])
    for orientation in ALL_ORIENTATIONS[::5]:
        turned = look_at_case(
            np.ascontiguousarray(orientation.apply(mask)),
            geometry.reoriented(orientation),
            LABELS,
            voxels=np.ascontiguousarray(orientation.apply(values))[None],
        )
        same_looks(turned, first)


def same_looks(found: CaseLook, expected: CaseLook) -> None:
    assert found.scan == pytest.approx(expected.scan)
    assert found.labels.keys() == expected.labels.keys()
    for name, one in found.labels.items():
        other = expected.labels[name]
        assert one.figures == pytest.approx(other.figures, abs=1e-4)
        assert one.centre_mm == pytest.approx(other.centre_mm)


def test_sides_that_touch_the_edge_are_named() -> None:
    mask = np.zeros((9, 8, 7), np.uint8)
    mask[0:3, 2:5, 4:7] = 1
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    look = look_at_case(mask, Geometry(mask.shape, affine), LABELS)
    assert look.labels["box"].cut_at == "RS"


def test_the_body_gives_places_where_it_is_whole() -> None:
    mask, values = np.zeros((60, 50, 9), np.uint8), np.full((60, 50, 9), -1000.0)
    values[10:50, 10:40] = 40.0
    mask[20:30, 20:26, 3:6] = 1
    geometry = Geometry(mask.shape, np.diag([2.0, 3.0, 5.0, 1.0]))
    look = look_at_case(mask, geometry, LABELS, voxels=values[None], scale=Scale((True,)))
    figures = look.labels["box"].figures
    assert figures["left to right place"] == pytest.approx((24.5 - 10) / 40, abs=0.03)
    assert figures["back to front place"] == pytest.approx((22.5 - 10) / 30, abs=0.03)
    values[:] = 40.0
    values[:10] = -1000.0
    look = look_at_case(mask, geometry, LABELS, voxels=values[None], scale=Scale((True,)))
    assert "back to front place" not in look.labels["box"].figures


def test_odd_masks_give_figures() -> None:
    one = np.zeros((5, 4, 3), np.uint8)
    one[2, 1, 1] = 1
    flat = np.zeros((9, 8, 1), np.uint8)
    flat[2:5, 3:6] = 2
    full = np.full((4, 3, 2), 1, np.uint16)
    for mask in (one, flat, full):
        values = np.full((1, *mask.shape), np.nan)
        look = look_at_case(mask, grid(mask.shape), LABELS, voxels=values)
        assert len(look.labels) == 1
        for found in look.labels.values():
            assert np.isfinite(list(found.figures.values())).all()
    assert look_at_case(np.zeros_like(one), grid(one.shape), LABELS).labels == {}
