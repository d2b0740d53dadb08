"""The watershed against scikit-image, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from medseg.evaluation.lesions import lesion_scores
from medseg.postprocess.watershed import split_at_necks

SPACING_MM = (0.7, 1.1, 2.3)


def hills(seed: int, shape: tuple[int, int, int] = (40, 31, 13)) -> np.ndarray:
    """Heights of which no two are equal, 0 in the valleys."""
    sigma = [3.0 if side > 1 else 0.0 for side in shape]
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return np.maximum(field / field.std(), 0).astype(np.float32)


@pytest.mark.parametrize("shape", [(40, 31, 13), (60, 47, 1)])
@pytest.mark.parametrize("depth", [0.15, 0.6])
def test_equals_h_maxima_and_watershed(shape: tuple[int, int, int], depth: float) -> None:
    for seed in range(3):
        heights = hills(seed, shape)
        found = split_at_necks(heights, (1.0, 1.0, 1.0), depth=depth)
        flat = heights.squeeze()
        near = np.ones((3,) * flat.ndim)
        peaks, count = ndimage.label(h_maxima(flat, np.float32(depth)), near)
        np.testing.assert_array_equal(found > 0, heights > 0)
        # What stands alone and lower than the depth is no h-maximum, but it is a region.
        tops = ndimage.maximum(heights, found, range(1, found.max() + 1))
        low = 1 + np.flatnonzero(tops < depth)
        assert found.max() - low.size == count > 3
        flooded = watershed(-flat, peaks, mask=flat > 0, connectivity=near)
        scores = lesion_scores(np.where(np.isin(found, low), 0, found), flooded.reshape(shape))
        assert scores.recognition_quality == 1.0
        # On slopes steepest ascent and flooding part ways.
        assert scores.panoptic_quality > 0.85


def test_each_region_hangs_together() -> None:
    heights = hills(7)
    found = split_at_necks(heights, SPACING_MM, share=0.8, depth=0.1)
    assert found.max() > 3
    for number in range(1, found.max() + 1):
        assert ndimage.label(found == number, np.ones((3, 3, 3)))[1] == 1


def test_shares_and_depths_by_hand() -> None:
    row = np.array([0, 2, 10, 7, 8, 4, 6, 6, 3, 0, 1], np.float32).reshape(1, 11, 1)

    def found(share: float, depth: float) -> list[int]:
        regions = split_at_necks(row, SPACING_MM, share=share, depth=depth).ravel()
        assert regions[0] == regions[9] == 0
        # By where they begin: numbers have no order.
        return [int(np.argmax(regions == number)) for number in regions[[2, 4, 6, 10]]]

    # Passes: 7 under a peak of 8 (share .875, depth 1), 4 under one of 6 (share .667, depth 2).
    # The pass itself belongs to the higher of its neighbours.
    assert found(0.9, 0.5) == [1, 4, 6, 10]
    assert found(0.8, 0.5) == [1, 1, 6, 10]
    assert found(0.9, 1.5) == [1, 1, 6, 10]
    assert found(0.6, 0.5) == found(1.0, 3.0) == [1, 1, 1, 10]


def test_order_in_memory_and_nothing() -> None:
    heights = hills(3)
    expected = split_at_necks(heights, SPACING_MM, depth=0.3)
    turned = split_at_necks(np.asfortranarray(heights), SPACING_MM, depth=0.3)
    np.testing.assert_array_equal(turned, expected)
    assert not split_at_necks(np.zeros((4, 3, 2), np.float32), SPACING_MM).any()
    assert (split_at_necks(np.ones((4, 3, 2), np.float32), SPACING_MM, depth=0.1) == 1).all()
