"""Smoothing and majority against SciPy, and by hand, on lopsided grids."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from medseg.core.labels import LabelSet
from medseg.postprocess.chain import apply_chain, parse_steps
from medseg.postprocess.smoothing import ball, majority, smooth_label
from tests.phantoms import lopsided_geometry

SPACING_MM = (0.7, 1.1, 2.3)
SHAPE = (24, 20, 14)


def noise(seed: int, sigma: float = 1.0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal(SHAPE)
    return np.asarray(ndimage.gaussian_filter(found, sigma))


def footprint(radius_mm: float) -> np.ndarray:
    sides = [int(radius_mm / step) for step in SPACING_MM]
    axes = zip(np.ogrid[tuple(slice(-n, n + 1) for n in sides)], SPACING_MM, strict=True)
    return np.asarray(sum((axis * step) ** 2 for axis, step in axes) <= radius_mm**2)


@pytest.mark.parametrize("radius_mm", [1.0, 2.4])
def test_majority_of_one_label_is_the_median(radius_mm: float) -> None:
    mask = (noise(0) > 0).astype(np.uint8)
    found = majority(mask, [1], radius_mm=radius_mm, spacing_mm=SPACING_MM)
    near = footprint(radius_mm)
    assert near.sum() == len(ball(radius_mm, SPACING_MM)) > 2
    inner = tuple(slice(n // 2, -(n // 2) or None) for n in near.shape)
    expected = ndimage.median_filter(mask, footprint=near)
    np.testing.assert_array_equal(found[inner], expected[inner])
    assert (found != mask).sum() > 50


def test_majority_of_several_labels_by_counting() -> None:
    field = noise(1, 0.8)
    mask = np.digitize(field, np.quantile(field, [0.4, 0.6, 0.8])).astype(np.uint16) * 200
    values, near = [400, 200], footprint(2.4)
    found = majority(mask, values, radius_mm=2.4, spacing_mm=SPACING_MM)
    order = [0, *values]

    def most(voxels: np.ndarray) -> int:
        own = int(voxels[voxels.size // 2])
        counts = Counter(int(v) for v in voxels if v in order)
        if own not in order or counts[own] == max(counts.values()):
            return own
        return min((v for v in order if counts[v] == max(counts.values())), key=order.index)

    expected = ndimage.generic_filter(
        mask.astype(float), most, footprint=near, mode="constant", cval=-1
    )
    np.testing.assert_array_equal(found, expected)
    # A label that is not named stays.
    np.testing.assert_array_equal(found == 600, mask == 600)


def test_majority_by_hand() -> None:
    row = np.array([1, 1, 1, 2, 1, 1, 0, 2, 2, 0, 0, 2, 0], np.uint8).reshape(13, 1, 1)
    found = majority(row, [1, 2], radius_mm=0.7, spacing_mm=SPACING_MM)
    assert found.ravel().tolist() == [1, 1, 1, 1, 1, 1, 0, 2, 2, 0, 0, 0, 0]
    np.testing.assert_array_equal(majority(row, [1, 2], radius_mm=0.6, spacing_mm=SPACING_MM), row)


@pytest.mark.parametrize("sigma_mm", [0.8, 1.7])
def test_smoothing_equals_scipy(sigma_mm: float) -> None:
    mask = (noise(2) > 0).astype(np.int16) * 9
    found = smooth_label(mask, [9], radius_mm=sigma_mm, spacing_mm=SPACING_MM)
    sigma = [sigma_mm / step for step in SPACING_MM]
    share, whole = (
        ndimage.gaussian_filter(part, sigma, mode="constant")
        for part in ((mask == 9).astype(float), np.ones(SHAPE))
    )
    np.testing.assert_array_equal(found == 9, share >= 0.5 * whole)
    assert found.dtype == mask.dtype
    assert (found != mask).sum() > 100


def test_smoothing_leaves_planes_and_other_labels() -> None:
    plane = np.zeros(SHAPE, np.uint8)
    plane[:11], plane[:, :6] = 1, 2
    # Flat to the edge of the image, and up to another label.
    found = smooth_label(plane, [1], radius_mm=2.0, spacing_mm=SPACING_MM)
    np.testing.assert_array_equal(found, plane)
    speck = np.zeros(SHAPE, np.uint8)
    speck[5, 5, 5], speck[15:20, 10:15, 7:10] = 1, 3
    speck[17, 12, 8] = 0
    found = smooth_label(speck, [1, 3], radius_mm=1.2, spacing_mm=SPACING_MM)
    assert not (found == 1).any()
    assert found[17, 12, 8] == 3


def test_in_a_chain() -> None:
    geometry = lopsided_geometry(SHAPE)
    labels = LabelSet.from_names({1: "liver", 2: "spleen"})
    mask = np.where(noise(3) > 0.02, 1, 2 * (noise(4) > 0)).astype(np.uint8)
    steps = parse_steps("majority:*=4mm; smooth:liver=2mm", labels)
    assert [step.text for step in steps] == [
        "majority:liver=4mm", "majority:spleen=4mm", "smooth:liver=2mm",
    ]  # fmt: skip
    found = apply_chain(mask, steps, labels, geometry=geometry)
    expected = majority(mask, [1, 2], radius_mm=4.0, spacing_mm=geometry.spacing_mm)
    assert not np.array_equal(expected, mask)
    expected = smooth_label(expected, [1], radius_mm=2.0, spacing_mm=geometry.spacing_mm)
    np.testing.assert_array_equal(found, expected)


def test_bodies_that_are_nothing_or_all() -> None:
    for change in (majority, smooth_label):
        for fill in (0, 1):
            mask = np.full((4, 3, 1), fill, np.uint8)
            found = change(mask, [1, 5], radius_mm=3.0, spacing_mm=SPACING_MM)
            np.testing.assert_array_equal(found, mask)
