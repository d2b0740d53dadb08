"""Variation: drawn once, applied exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from scipy import ndimage

from medseg.core.plan import AugmentationPlan
from medseg.transforms.augment import (
    RandVaryd,
    Variation,
    draw_variation,
    needed_box,
    sample_patch,
    vary_intensity,
)

ALWAYS = AugmentationPlan(affine_probability=1, intensity_probability=1, mirror_axes=(0, 1))


def draw(seed: int, dims: int = 3, spacing: tuple[float, ...] = (1.0, 2.0, 3.0)) -> Variation:
    rng = np.random.default_rng(seed)
    return draw_variation(rng, ALWAYS, spatial_dims=dims, spacing=np.array(spacing))


def test_patch_equals_scipys_resampling() -> None:
    volume = torch.randn(1, 20, 18, 16, generator=torch.Generator().manual_seed(0))
    patch, centre = (8, 10, 6), np.array([9.3, 8.1, 7.7])
    for seed in range(5):
        matrix = draw(seed).matrix
        rows = [np.arange(side) - (side - 1) / 2 for side in patch]
        offsets = np.stack(np.meshgrid(*rows, indexing="ij"), axis=-1)
        places = np.moveaxis(offsets @ matrix.T + centre, -1, 0) + 10
        padded = np.pad(volume[0].numpy(), 10)
        expected = ndimage.map_coordinates(padded, places, order=1)
        ours = sample_patch(volume, centre, matrix, patch=patch)[0].numpy()
        np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_without_rotation_a_patch_is_a_crop(flip: tuple[int, int, int]) -> None:
    volume = torch.randn(2, 20, 18, 16, generator=torch.Generator().manual_seed(0))
    patch, start = (8, 10, 6), np.array([3, 4, 5])
    moved = sample_patch(volume, start + (np.array(patch) - 1) / 2, np.diag(flip), patch=patch)
    crop = volume[:, 3:11, 4:14, 5:11].flip([n + 1 for n in range(3) if flip[n] < 0])
    torch.testing.assert_close(moved, crop, atol=1e-5, rtol=0)


def test_needed_box_holds_every_voxel_that_the_patch_reads() -> None:
    volume = torch.randn(1, 40, 44, 36, generator=torch.Generator().manual_seed(0))
    patch, centre = (8, 10, 6), np.array([20.0, 21.5, 17.0])
    for seed in range(8):
        matrix = draw(seed).matrix
        low, high = needed_box(centre, matrix, patch)
        box = volume[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        whole = sample_patch(volume, centre, matrix, patch=patch)
        torch.testing.assert_close(
            sample_patch(box, centre - low, matrix, patch=patch), whole, atol=1e-4, rtol=0
        )


def test_rotation_is_rigid_in_millimetres() -> None:
    plan = AugmentationPlan(affine_probability=1, scale=(1.0, 1.0))
    spacing = np.array([0.5, 2.0, 4.0])
    matrix = draw_variation(np.random.default_rng(4), plan, spatial_dims=3, spacing=spacing).matrix
    in_mm = np.diag(spacing) @ matrix @ np.diag(1 / spacing)
    np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-9)
    assert np.abs(in_mm - np.eye(3)).max() > 0.05


def test_two_dimensions_stay_in_their_plane() -> None:
    for seed in range(5):
        matrix = draw(seed, dims=2).matrix
        np.testing.assert_array_equal(matrix[2], [0, 0, 1])
        np.testing.assert_array_equal(matrix[:, 2], [0, 0, 1])


def test_the_same_draw_gives_the_same_voxels() -> None:
    x = torch.randn(1, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(vary_intensity(x, first), vary_intensity(x, again))
    assert not torch.equal(vary_intensity(x, first), vary_intensity(x, other))


def test_blur_equals_scipys_gaussian() -> None:
    x = torch.randn(1, 20, 18, 16, generator=torch.Generator().manual_seed(0))
    ours = vary_intensity(x, Variation(np.eye(3), blur_sigma=0.8))[0].numpy()
    theirs = ndimage.gaussian_filter(x[0].numpy(), 0.8, mode="nearest", radius=2)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_gain_contrast_and_gamma_by_hand() -> None:
    x = torch.linspace(-1, 3, 24).reshape(1, 4, 3, 2)
    torch.testing.assert_close(vary_intensity(x, Variation(np.eye(3), gain=1.5)), x * 1.5)
    flat = vary_intensity(x, Variation(np.eye(3), contrast=0.5))
    torch.testing.assert_close(flat, (x - x.mean()) * 0.5 + x.mean())
    bent = vary_intensity(x, Variation(np.eye(3), gamma=1.4))
    assert float(bent.mean()) == pytest.approx(float(x.mean()), abs=1e-5)
    assert float(bent.std()) == pytest.approx(float(x.std()), abs=1e-5)
    assert torch.equal(bent.ravel().argsort(), x.ravel().argsort())


def test_stands_in_a_users_own_compose() -> None:
    chain = Compose([RandVaryd(ALWAYS)]).set_random_state(seed=7)
    image = torch.randn(1, 12, 10, 8)
    label = (image > 0).float()
    done = chain({"image": image, "label": label})
    assert done["image"].shape == image.shape
    assert set(done["label"].unique().tolist()) <= {0.0, 1.0}
    again = Compose([RandVaryd(ALWAYS)]).set_random_state(seed=7)({"image": image, "label": label})
    assert torch.equal(done["image"], again["image"])
