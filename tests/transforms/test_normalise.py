"""Normalisations and the region where something is, by hand and against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_fill_holes, find_objects

from medseg.core.errors import InputError
from medseg.core.plan import ChannelPlan
from medseg.transforms.normalise import filled_nonzero, nonzero_box, normalise


def channel(kind: str) -> ChannelPlan:
    return ChannelPlan(name="picture", normalisation=kind)  # type: ignore[arg-type]


def test_unit_ranges_by_hand() -> None:
    voxels = torch.tensor([10.0, 20.0, 60.0]).reshape(3, 1, 1)
    expected = torch.tensor([0.0, 0.2, 1.0]).reshape(3, 1, 1)
    torch.testing.assert_close(normalise(voxels, channel("rescale_01")), expected)
    torch.testing.assert_close(normalise(voxels, channel("rgb_01")), voxels / 255)
    assert torch.equal(normalise(voxels, channel("none")), voxels)
    assert torch.equal(normalise(voxels * 0, channel("rescale_01")), voxels * 0)
    for wrong in (voxels - 11, voxels * 5):
        with pytest.raises(InputError, match="colours from 0 to 255"):
            normalise(wrong, channel("rgb_01"))


def test_zscore_inside_a_region_leaves_the_rest() -> None:
    voxels = torch.tensor([0.0, 2.0, 0.0, 4.0, 9.0]).reshape(5, 1, 1)
    region = torch.tensor([False, True, True, True, False]).reshape(5, 1, 1)
    done = normalise(voxels, channel("zscore_mask"), region=region).ravel()
    # Of 2, 0, 4: mean 2, standard deviation sqrt(8 / 3).
    expected = torch.tensor([0, 0, -2 / (8 / 3) ** 0.5, 2 / (8 / 3) ** 0.5, 9])
    torch.testing.assert_close(done, expected)
    nowhere = torch.zeros_like(region)
    assert torch.equal(normalise(voxels, channel("zscore_mask"), region=nowhere), voxels)


@pytest.mark.parametrize("seed", range(4))
def test_box_and_filled_region_agree_with_scipy(seed: int) -> None:
    chance = np.random.default_rng(seed)
    voxels = chance.normal(size=(2, 12, 15, 9)).astype(np.float32)
    voxels[:, chance.random((12, 15, 9)) < 0.6] = 0
    voxels[0, 3] = 0
    voxels[:, :2] = voxels[:, :, 11:] = 0
    there = (voxels != 0).any(axis=0)
    np.testing.assert_array_equal(
        filled_nonzero(torch.from_numpy(voxels)).numpy(), binary_fill_holes(there)
    )
    assert nonzero_box(torch.from_numpy(voxels)) == find_objects(there.astype(int))[0]


def test_a_scan_of_zeros_is_kept_whole() -> None:
    voxels = torch.zeros(1, 4, 3, 5)
    assert nonzero_box(voxels) == (slice(0, 4), slice(0, 3), slice(0, 5))
    assert not filled_nonzero(voxels).any()
