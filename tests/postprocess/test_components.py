"""Components against SciPy, label by label, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from medseg.core.errors import InputError
from medseg.core.geometry import ALL_ORIENTATIONS
from medseg.postprocess.components import keep_largest, label_components

RANK = {6: 1, 18: 2, 26: 3}


def scipy_largest(mask: NDArray[Any], values: list[int], connectivity: int) -> NDArray[Any]:
    """The slow way: one labelling per label; SciPy numbers regions in (i, j, k) order."""
    result = mask.copy()
    for value in values:
        regions, count = ndimage.label(
            mask == value, ndimage.generate_binary_structure(3, RANK[connectivity])
        )
        if count:
            sizes = np.bincount(regions.ravel())[1:]
            result[(regions > 0) & (regions != np.argmax(sizes) + 1)] = 0
    return result


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("shape", [(13, 9, 6), (17, 11, 1), (1, 7, 5)])
def test_equals_scipy_per_label(shape: tuple[int, int, int], connectivity: int) -> None:
    rng = np.random.default_rng(3)
    for density in (0.1, 0.3, 0.6):
        mask = rng.integers(1, 5, shape) * (rng.random(shape) < density)
        mask = mask.astype(np.uint8)
        before = mask.copy()
        cleaned = keep_largest(mask, [1, 2, 4], connectivity=connectivity)
        np.testing.assert_array_equal(cleaned, scipy_largest(mask, [1, 2, 4], connectivity))
        assert cleaned.dtype == mask.dtype
        np.testing.assert_array_equal(mask, before)


@settings(max_examples=60, deadline=None)
@given(
    mask=arrays(np.uint16, (5, 4, 3), elements=st.sampled_from([0, 1, 2, 700])),
    connectivity=st.sampled_from([6, 18, 26]),
)
def test_ties_fall_the_same_way_as_in_scipy(mask: NDArray[Any], connectivity: int) -> None:
    np.testing.assert_array_equal(
        keep_largest(mask, [1, 2, 700], connectivity=connectivity),
        scipy_largest(mask, [1, 2, 700], connectivity),
    )


def test_memory_layout_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    mask = (rng.integers(1, 4, (9, 7, 5)) * (rng.random((9, 7, 5)) < 0.2)).astype(np.int16)
    expected = keep_largest(mask, [1, 2, 3])
    for turn in ALL_ORIENTATIONS:
        other = turn.inverse().apply(turn.apply(mask).copy())
        np.testing.assert_array_equal(keep_largest(other, [1, 2, 3]), expected)
    swapped = mask.astype(mask.dtype.newbyteorder())
    np.testing.assert_array_equal(keep_largest(swapped, [1, 2, 3]), expected)


def test_regions_of_two_labels_are_not_joined() -> None:
    mask = np.array([1, 1, 2, 2, 2, 0, 1], dtype=np.uint8).reshape(7, 1, 1)
    components, count = label_components(mask)
    assert count == 3
    assert len(np.unique(components[mask > 0])) == 3
    assert keep_largest(mask, [1, 2]).ravel().tolist() == [1, 1, 2, 2, 2, 0, 0]


def test_connectivity_in_the_plane() -> None:
    corner = np.zeros((4, 4, 1), dtype=np.uint8)
    corner[0, 0] = corner[1, 1] = corner[2, 2] = corner[2, 3] = 1
    assert label_components(corner, 6)[1] == 3
    assert label_components(corner, 18)[1] == label_components(corner, 26)[1] == 1


@pytest.mark.parametrize("fill", [0, 3])
def test_empty_and_full_stay(fill: int) -> None:
    mask = np.full((4, 3, 2), fill, dtype=np.uint8)
    np.testing.assert_array_equal(keep_largest(mask, [1, 3]), mask)


def test_one_voxel_and_read_only() -> None:
    mask = np.zeros((4, 3, 2), dtype=np.uint8)
    mask[3, 2, 1] = 9
    mask.setflags(write=False)
    np.testing.assert_array_equal(keep_largest(mask, [9]), mask)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="whole numbers"):
        keep_largest(np.zeros((3, 3, 3), dtype=np.float32), [1])
    with pytest.raises(InputError, match="shape"):
        keep_largest(np.zeros((3, 3), dtype=np.uint8), [1])
    with pytest.raises(InputError, match="6, 18 or 26"):
        keep_largest(np.zeros((3, 3, 3), dtype=np.uint8), [1], connectivity=8)
