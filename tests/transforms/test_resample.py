"""Resampling against torch's own interpolation and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from torch.nn.functional import interpolate, one_hot

from medseg.core.geometry import Geometry
from medseg.core.plan import AxisResampling
from medseg.transforms.resample import (
    AxisRules,
    axis_rules,
    axis_weights,
    nearest_index,
    resample_image,
    resample_labels,
    sample_rows,
    shape_for,
)
from tests.phantoms import lopsided_volume

SHAPES = [(31, 40, 33), (11, 50, 20), (48, 56, 40), (24, 28, 20), (7, 7, 7)]


def smooth_labels(shape: tuple[int, int, int], classes: int) -> np.ndarray:
    coarse = np.random.default_rng(3).integers(0, classes, [-(-side // 4) for side in shape])
    fine = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)
    return fine[: shape[0], : shape[1], : shape[2]].astype(np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_labels_equal_the_argmax_of_interpolated_one_hot(shape: tuple[int, int, int]) -> None:
    labels = smooth_labels((24, 28, 20), 5)
    hot = one_hot(torch.from_numpy(labels).long(), 5).permute(3, 0, 1, 2)[None].double()
    share = interpolate(hot, size=shape, mode="trilinear", align_corners=False)[0]
    best, second = share.topk(2, dim=0).values
    clear = (best - second > 1e-4).numpy()
    result = resample_labels(labels, shape)
    assert clear.mean() > 0.8
    assert result.shape == shape
    assert result.dtype == labels.dtype
    np.testing.assert_array_equal(result[clear], share.argmax(dim=0).numpy()[clear])


def test_a_tie_goes_to_the_nearest_and_halfway_up() -> None:
    labels = np.array([1, 2, 3, 4, 5, 6], dtype=np.uint8).reshape(6, 1, 1)
    # Three from six lie between two each; of nine from six the 2nd, 5th and 8th do.
    np.testing.assert_array_equal(resample_labels(labels, (3, 1, 1)).ravel(), [2, 4, 6])
    expected = [1, 2, 2, 3, 4, 4, 5, 6, 6]
    np.testing.assert_array_equal(resample_labels(labels, (9, 1, 1)).ravel(), expected)


def test_labels_come_back_after_doubling_and_halving() -> None:
    labels = smooth_labels((12, 20, 9), 4)
    doubled = resample_labels(labels, (24, 40, 18))
    np.testing.assert_array_equal(resample_labels(doubled, labels.shape), labels)


def test_a_ramp_stays_a_ramp_in_space() -> None:
    # Half-pixel centres: a linear function of position is reproduced, but for the edges.
    ramp = torch.arange(20.0).reshape(1, 20, 1, 1).expand(1, 20, 3, 2).contiguous()
    fine = resample_image(ramp, (60, 3, 2))[0, :, 0, 0]
    expected = (torch.arange(60.0) + 0.5) / 3 - 0.5
    torch.testing.assert_close(fine[2:-2], expected[2:-2], atol=1e-4, rtol=0)


def test_planes_at_uneven_places_lie_between_their_neighbours() -> None:
    volume = torch.from_numpy(lopsided_volume((7, 6, 5))[0].astype(np.float32))[None]
    rows, places = slice(2, 5), [0.0, 1.0, 1.75, 4.0]
    whole = sample_rows(volume, np.eye(4), (7, 6, 5), rows=rows, fill=None)
    planes = sample_rows(volume, np.eye(4), (7, 6, 4), rows=rows, fill=None, last=places)
    # Worked out by hand from the even planes.
    expected = torch.stack(
        [whole[..., 0], whole[..., 1], 0.25 * whole[..., 1] + 0.75 * whole[..., 2], whole[..., 4]],
        dim=-1,
    )
    torch.testing.assert_close(planes, expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("shape", [(31, 19, 11), (9, 40, 24), (4, 12, 1), (60, 23, 11)])
def test_cubic_equals_scipys_zoom(shape: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(5).normal(size=(17, 23, 11)).astype(np.float32)
    factors = [new / old for new, old in zip(shape, volume.shape, strict=True)]
    theirs = zoom(volume.astype(float), factors, order=3, mode="nearest", grid_mode=True)
    theirs = theirs.clip(volume.min(), volume.max())
    ours = resample_image(torch.from_numpy(volume)[None], shape, rules=AxisRules((3, 3, 3)))[0]
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)


def test_a_separate_axis_is_resampled_after_the_planes() -> None:
    volume = np.random.default_rng(6).normal(size=(6, 13, 9)).astype(np.float32)
    rules = AxisRules((0, 3, 3), separate=0)
    ours = resample_image(torch.from_numpy(volume)[None], (14, 20, 7), rules=rules)[0].numpy()
    planes = []
    for plane in volume.astype(float):
        fine = zoom(plane, (20 / 13, 7 / 9), order=3, mode="nearest", grid_mode=True)
        planes.append(fine.clip(plane.min(), plane.max()))
    nearest = np.floor((np.arange(14) + 0.5) * 6 / 14).astype(int)
    np.testing.assert_allclose(ours, np.stack(planes)[nearest], atol=1e-5)


def test_orders_may_differ_by_axis() -> None:
    volume = torch.randn(2, 5, 8, 6, generator=torch.Generator().manual_seed(7))
    linear = resample_image(volume, (11, 5, 7))
    by_matrix = volume
    for axis, size in enumerate((11, 5, 7)):
        weights = axis_weights(volume.shape[axis + 1], size, 1)
        assert torch.allclose(weights.sum(dim=1), torch.ones(size))
        by_matrix = torch.tensordot(weights, by_matrix, ([1], [axis + 1])).movedim(0, axis + 1)
    torch.testing.assert_close(by_matrix, linear, atol=1e-5, rtol=1e-5)
    nearest = interpolate(volume[None], size=(11, 8, 6), mode="nearest-exact")[0]
    rules = AxisRules((0, 1, 1), separate=0)
    assert torch.equal(resample_image(volume, (11, 8, 6), rules=rules), nearest)


def test_labels_of_a_separate_axis_are_those_of_the_nearest_plane() -> None:
    labels = smooth_labels((6, 20, 16), 4)
    rules = AxisRules((0, 1, 1), separate=0)
    ours = resample_labels(labels, (13, 11, 30), rules=rules)
    planes = np.concatenate([resample_labels(part[None], (1, 11, 30)) for part in labels])
    np.testing.assert_array_equal(ours, planes[nearest_index(6, 13)])


AUTO = AxisResampling(order=3, coarse_order=0, separate="auto")


@pytest.mark.parametrize(
    ("old", "new", "axis"),
    [
        ((5.0, 1.0, 1.0), (1.0, 1.0, 1.0), 0),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 5.0), 2),
        ((1.0, 4.0, 1.0), (9.0, 1.0, 1.0), 1),  # the first grid decides
        ((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),  # not above the threshold
        ((5.0, 5.0, 1.0), (1.0, 1.0, 1.0), None),  # two coarsest axes
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),
    ],
)
def test_which_axis_is_separate(
    old: tuple[float, ...], new: tuple[float, ...], axis: int | None
) -> None:
    rules = axis_rules(AUTO, old, new, 3.0)
    assert rules.separate == axis
    assert rules.orders == tuple(0 if place == axis else 3 for place in range(3))
    never = AxisResampling(order=3, coarse_order=0, separate="never")
    assert axis_rules(never, old, new, 3.0) == AxisRules((3, 3, 3))


def test_always_separate_takes_the_coarsest_axis_of_the_first_grid() -> None:
    always = AxisResampling(order=1, coarse_order=0, separate="always")
    assert axis_rules(always, (1.0, 1.2, 1.0), (3.0, 1.0, 1.0), 3.0).separate == 1
    assert axis_rules(always, (1.0, 1.0, 1.0), (3.0, 1.0, 1.0), 3.0).separate is None


def test_half_a_voxel_goes_to_the_even_neighbour_when_asked() -> None:
    # 5 voxels of 0.5 mm at 1 mm are 2.5, 7 are 3.5; 15 of 0.9 (as float32) a hair below 13.5.
    narrow = float(np.float32(0.9))
    geometry = Geometry((5, 7, 15), np.diag([-0.5, 0.5, narrow, 1.0]))
    assert shape_for(geometry, (1.0, 1.0, 1.0), rounding="half_even") == (2, 4, 13)
    assert shape_for(geometry, (1.0, 1.0, None), rounding="half_up") == (3, 4, 15)
    # A turned affine has other last bits, and the same number of voxels.
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    turned = Geometry(geometry.shape, turn @ geometry.affine_ras)
    assert shape_for(turned, (1.0, 1.0, 1.0), rounding="half_even") == (2, 4, 13)
