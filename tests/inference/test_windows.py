"""Tiling arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.inference.windows import gaussian_weights, padding, window_starts, windows


@given(st.integers(1, 300), st.integers(1, 128), st.floats(0.1, 1.0))
def test_windows_cover_every_voxel_and_stay_inside(size: int, patch: int, step: float) -> None:
    size = max(size, patch)
    starts = window_starts(size, patch, step)
    assert starts[0] == 0
    assert starts[-1] == size - patch
    gaps = np.diff(starts)
    assert (gaps > 0).all()
    assert (gaps <= max(1, np.ceil(patch * step))).all()


def test_starts_by_hand() -> None:
    assert window_starts(10, 4, 0.5) == (0, 2, 4, 6)
    assert window_starts(11, 4, 0.5) == (0, 2, 4, 5, 7)
    assert window_starts(4, 4, 0.5) == (0,)
    assert len(windows((10, 4, 7), (4, 4, 7), 0.5)) == 4
    with pytest.raises(ValueError, match="smaller"):
        window_starts(3, 4, 0.5)


def test_padding_is_centred() -> None:
    assert padding((5, 9, 4), (8, 8, 5)) == ((1, 2), (0, 0), (0, 1))


def test_gaussian_agrees_with_monais_shape() -> None:
    from monai.data.utils import compute_importance_map

    patch = (9, 6, 5)
    theirs = compute_importance_map(patch, mode="gaussian", sigma_scale=0.125).numpy()
    ours = gaussian_weights(patch, 0.125)
    assert ours.min() > 0
    np.testing.assert_allclose(ours / ours.max(), theirs / theirs.max(), atol=2e-3)
    np.testing.assert_array_equal(ours, ours[::-1, ::-1, ::-1])
