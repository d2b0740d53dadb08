"""Nearest distances: every way to find them against SciPy's distance transform."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medseg.evaluation import nearest
from medseg.evaluation.nearest import distance_transform, nearest_distances

SPACING_MM = (0.7, 1.3, 2.9)
_WAYS = {"any": {}, "tree": {"_COST_OF_VOXEL_IN_TRANSFORM": 10**9, "_COST_OF_SOURCE_IN_TREE": 0},
         "transform": {"_COST_OF_WIDE_QUERY": 10**9, "_MOST_OFFSETS": 2},
         "far": {"_COST_OF_WIDE_QUERY": 0, "_COST_OF_SOURCE_IN_TREE": 0, "_MOST_OFFSETS": 2},
         "around": {"_COST_OF_STEP": 0, "_COST_OF_NEAR_QUERY": 10**6}}  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh() -> None:
    nearest._offsets.cache_clear()


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("shape", [(31, 24, 11), (40, 23), (60,)])
def test_against_scipy(way: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _WAYS[way].items():
        monkeypatch.setattr(nearest, name, value)
    rng = np.random.default_rng(3)
    for share in (0.9, 0.2, 0.002):
        points, sources = rng.random((2, *shape)) < share
        points.flat[0] = sources.flat[-1] = True
        steps_mm = SPACING_MM[: len(shape)]
        expected = ndimage.distance_transform_edt(~sources, sampling=steps_mm)
        found = nearest_distances(points, sources, spacing_mm=steps_mm)
        np.testing.assert_allclose(found, expected[points], rtol=3e-7)


def test_one_voxel() -> None:
    one = np.ones((), dtype=bool)
    assert nearest_distances(one, one, spacing_mm=()).tolist() == [0.0]


def test_transform_against_scipy() -> None:
    sources = np.random.default_rng(1).random((30, 21, 13)) < 0.01
    expected = ndimage.distance_transform_edt(~sources, sampling=SPACING_MM)
    np.testing.assert_allclose(distance_transform(sources, SPACING_MM), expected, rtol=3e-7)
