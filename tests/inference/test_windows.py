"""Tiling arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.inference.windows import Bell, Tiling, padding, window_starts


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
    assert len(Tiling.of((10, 4, 7), (4, 4, 7), 0.5)) == 4
    with pytest.raises(ValueError, match="smaller"):
        window_starts(3, 4, 0.5)


def test_padding_is_centred() -> None:
    assert padding((5, 9, 4), (8, 8, 5)) == ((1, 2), (0, 0), (0, 1))


def product_of(bell: Bell, patch: tuple[int, ...]) -> np.ndarray:
    a, b, c = (bell.along(side) for side in patch)
    return a[:, None, None] * b[:, None] * c


def test_bell_agrees_with_monais() -> None:
    from monai.data.utils import compute_importance_map

    patch = (9, 6, 5)
    theirs = compute_importance_map(patch, mode="gaussian", sigma_scale=0.125).numpy()
    ours = product_of(Bell(0.125, 1e-3), patch)
    assert ours.min() > 0
    np.testing.assert_allclose(ours / ours.max(), theirs / theirs.max(), atol=2e-3)
    np.testing.assert_array_equal(ours, ours[::-1, ::-1, ::-1])


def test_bell_by_hand() -> None:
    assert Bell(0.25).along(4)[0] == pytest.approx(np.exp(-0.5 * 1.5**2))
    assert Bell(0.25, centre="voxel").along(4)[2] == 1
    assert Bell(0.01, 1e-3).along(64).min() == 1e-3
    assert Bell(flat=True).along(3).tolist() == [1, 1, 1]
    # However narrow the bell, each voxel counts for something.
    assert Bell(1e-4).along(64).min() > 0


SIDES = st.tuples(*[st.integers(1, 24)] * 3)


@given(SIDES, st.tuples(*[st.integers(1, 9)] * 3), st.sampled_from([0.25, 0.5, 0.7, 1.0]))
def test_shares_of_all_windows_sum_to_one(
    shape: tuple[int, int, int], patch: tuple[int, int, int], step: float
) -> None:
    tiling = Tiling.of(shape, patch, step)
    shares = tiling.shares(Bell(0.125, 0.0))
    total = np.zeros(shape)
    for window in tiling:
        a, b, c = (shares[axis][n] for axis, n in enumerate(window))
        weight = a[:, None, None] * b[:, None] * c
        box = tiling.inside(window)
        real = tuple(
            slice(before, before + part.stop - part.start)
            for part, (before, _) in zip(box, tiling.gaps, strict=True)
        )
        total[box] += weight[real]
    np.testing.assert_allclose(total, 1, atol=1e-5)


def carried_by_hand(tiling: Tiling) -> int:
    """Mark the voxels that each row of windows touches, drop those that no later row touches."""
    first, second, _ = tiling.order
    rows = sorted({(window[first], window[second]) for window in tiling})
    touches = np.zeros((len(rows), *tiling.shape), dtype=bool)
    for window in tiling:
        touches[rows.index((window[first], window[second])), *tiling.inside(window)] = True
    begun = np.logical_or.accumulate(touches)
    to_come = np.logical_or.accumulate(touches[::-1])[::-1]
    return int((begun & to_come).sum(axis=(1, 2, 3)).max())


@given(SIDES, st.tuples(*[st.integers(1, 9)] * 3), st.permutations([0, 1, 2]))
def test_carried_voxels_are_what_a_run_carries(
    shape: tuple[int, int, int], patch: tuple[int, int, int], order: list[int]
) -> None:
    tiling = Tiling.of(shape, patch, 0.5, order=(order[0], order[1], order[2]))
    least = carried_by_hand(tiling)
    first, second, third = tiling.order
    # A block holds a box, and is held twice while it grows.
    block = max(np.diff(tiling.edges[first])) * max(np.diff(tiling.edges[second]))
    assert least <= tiling.carried_voxels <= least + 3 * block * shape[third]
    ring = min(patch[first], shape[first]) * shape[second] * shape[third]
    assert tiling.carried_voxels <= ring + block * shape[third]


def test_the_long_axis_is_streamed() -> None:
    tiling = Tiling.of((273, 273, 533), (128, 128, 128), 0.5)
    assert tiling.order[0] == 2
    # Half a patch is carried, and one row of patches more.
    assert tiling.carried_voxels < 273 * 273 * 128 * 0.9
