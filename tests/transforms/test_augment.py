"""Variation: drawn once, applied exactly; compared with SciPy, NumPy and MONAI."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import (
    AdjustContrast,
    Affine,
    Compose,
    GaussianSmooth,
    KSpaceSpikeNoise,
    RandBiasField,
    RandGaussianNoise,
)
from scipy import ndimage
from scipy.interpolate import BSpline
from torch import Tensor
from torch.nn.functional import interpolate

from medseg.core.augmentation_plan import AugmentationPlan, Chance
from medseg.transforms import augment_space, augment_steps
from medseg.transforms.augment import Elastic, Lines, Spike, Variation, draw_variation
from medseg.transforms.augment_space import needed_box, sample_patch, spline_weights, swapped
from medseg.transforms.augment_steps import STEPS, RandMirrord, RandMoved, RandVaryd
from medseg.transforms.augment_values import line_matrix, vary_intensity

ALWAYS = AugmentationPlan(
    affine_probability=1.0, elastic_probability=1.0, intensity_probability=1.0, mirror_axes=(0, 1),
    **{
        name: getattr(AugmentationPlan(), name).model_copy(update={"probability": 1.0})
        for name in STEPS
    },
)  # fmt: skip


def draw(seed: int, dims: int = 3, spacing: tuple[float, ...] = (1.0, 2.0, 3.0)) -> Variation:
    rng = np.random.default_rng(seed)
    return draw_variation(rng, ALWAYS, spatial_dims=dims, spacing=np.array(spacing))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moved(volume: Tensor, centre: Any, variation: Variation, patch: Any) -> Tensor:
    (image,) = sample_patch([volume], centre, variation, patch=patch, nearest=[False])
    return image


def varied(x: Tensor, **changes: Any) -> Tensor:
    return vary_intensity(x[None].clone(), [Variation(**changes)])[0]


def places(variation: Variation, centre: Any, patch: Any) -> Any:
    """(3, *patch): where each voxel of the patch comes from, by hand."""
    rows = [np.arange(side) - (side - 1) / 2 for side in patch]
    offsets = np.stack(np.meshgrid(*rows, indexing="ij"), axis=-1)
    return np.moveaxis(offsets @ variation.matrix.T + centre, -1, 0)


@pytest.fixture
def in_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpolate as on a GPU: exact to a float, where rows leave fewer digits."""
    monkeypatch.setattr(augment_space, "_MOST_ROWS", 0)


@pytest.mark.parametrize(("threads", "rows"), [(1, 0), (1, 1 << 16), (2, 1 << 16)])
def test_patch_equals_scipys_resampling(
    threads: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment_space, "_MOST_ROWS", rows)
    volume, before = noise(1, 20, 18, 16), torch.get_num_threads()
    patch, centre = (8, 10, 6), np.array([9.3, 8.1, 7.7])
    torch.set_num_threads(threads)
    try:
        for seed in range(5):
            one = replace(draw(seed), elastic=None)
            padded = np.pad(volume[0].numpy(), 10)
            expected = ndimage.map_coordinates(padded, places(one, centre, patch) + 10, order=1)
            ours = moved(volume, centre, one, patch)[0].numpy()
            np.testing.assert_allclose(ours, expected, atol=2e-4 if rows else 2e-5)
    finally:
        torch.set_num_threads(before)


def test_patch_equals_monais_affine() -> None:
    volume = noise(2, 14, 12, 10)
    one = replace(draw(3, spacing=(1, 1, 1)), elastic=None)
    square = np.eye(4)
    square[:3, :3] = one.matrix
    theirs = Affine(affine=square, padding_mode="zeros", image_only=True)(volume)
    ours = moved(volume, np.array([6.5, 5.5, 4.5]), one, (14, 12, 10))
    torch.testing.assert_close(ours, torch.as_tensor(theirs).as_subclass(Tensor), atol=1e-4, rtol=0)


def test_labels_take_the_nearest_voxel() -> None:
    label = torch.randint(0, 5, (1, 20, 18, 16), generator=torch.Generator().manual_seed(0))
    patch, centre = (8, 10, 6), np.array([9.3, 8.1, 7.7])
    for seed, dtype in enumerate((torch.uint8, torch.int32)):
        one = replace(draw(seed), elastic=None)
        box = label.to(dtype)
        (ours,) = sample_patch([box], centre, one, patch=patch, nearest=[True])
        padded = np.pad(label[0].numpy(), 20)
        index = np.floor(places(one, centre, patch) + 20 + 0.5).astype(int)
        np.testing.assert_array_equal(ours[0].numpy(), padded[tuple(index)])
        assert ours.dtype == dtype


@pytest.mark.usefixtures("in_space")
def test_elastic_displacement_equals_scipys_splines() -> None:
    volume, patch, centre = noise(1, 30, 28, 26), (9, 8, 7), np.array([14.2, 13.4, 12.9])
    elastic = Elastic(step=(4.0, 3.0, 5.0), reach=(1.5, 1.0, 2.0), seed=11)
    one = replace(draw(2), elastic=elastic)
    counts = [spline_weights(s, d).shape[1] for s, d in zip(patch, elastic.step, strict=True)]
    rng = np.random.default_rng(11)
    control = rng.uniform(-1, 1, (3, *counts)) * np.array(elastic.reach)[:, None, None, None]
    shift = control
    for axis, (side, step, count) in enumerate(zip(patch, elastic.step, counts, strict=True)):
        # One control point in the middle; knots from two steps before the first of them.
        first = -(count // 2 - 1) * step
        knots = first + step * (np.arange(count + 4) - 2)
        spline = BSpline(knots, np.moveaxis(shift, axis + 1, 0), 3)
        shift = np.moveaxis(spline(np.arange(side) - (side - 1) / 2), 0, axis + 1)
    turned = np.einsum("ab,b...->a...", one.matrix, shift)
    expected = ndimage.map_coordinates(
        np.pad(volume[0].numpy(), 10), places(one, centre, patch) + turned + 10, order=1
    )
    ours = moved(volume, centre, one, patch)[0].numpy()
    np.testing.assert_allclose(ours, expected, atol=5e-5)


def test_elastic_displacement_never_folds() -> None:
    for seed in range(4):
        elastic = Elastic(step=(8.0, 8.0, 8.0), reach=(3.2, 3.2, 3.2), seed=seed)
        ramps = torch.stack(
            torch.meshgrid(*(torch.arange(side).float() for side in (60, 56, 52)), indexing="ij")
        )
        centre = np.array([29.5, 27.5, 25.5])
        field = moved(ramps, centre, Variation(elastic=elastic), (40, 36, 32)).numpy()
        jacobian = np.stack([np.stack(np.gradient(axis), -1) for axis in field], -2)
        assert np.linalg.det(jacobian).min() > 0


@pytest.mark.parametrize("flip", [(), (0,), (1, 2)])
def test_without_rotation_a_patch_is_a_crop(flip: tuple[int, ...]) -> None:
    volume, patch, start = noise(2, 20, 18, 16), (8, 10, 6), np.array([3, 4, 5])
    matrix = np.diag([-1.0 if axis in flip else 1.0 for axis in range(3)])
    one = Variation(matrix=matrix, mirrored=flip)
    crop = volume[:, 3:11, 4:14, 5:11].flip([n + 1 for n in flip])
    exact = moved(volume, start + (np.array(patch) - 1) / 2, one, patch)
    assert torch.equal(exact, crop)
    # A hair beside the voxels it is interpolated, to the same.
    near = moved(volume, start + (np.array(patch) - 1) / 2 + 1e-5, one, patch)
    torch.testing.assert_close(near, crop, atol=1e-3, rtol=0)
    beyond = moved(volume, np.array([-1.5, 8.5, 8.5]), one, patch)
    assert torch.equal(beyond, torch.nn.functional.pad(volume, (0, 0, 0, 0, 8, 0))[
        :, 3:11, 4:14, 6:12].flip([n + 1 for n in flip]))  # fmt: skip


@pytest.mark.usefixtures("in_space")
def test_needed_box_holds_every_voxel_that_the_patch_reads() -> None:
    volume, patch, centre = noise(1, 60, 64, 56), (8, 10, 6), np.array([30.0, 31.5, 27.0])
    for seed in range(8):
        one = draw(seed)
        low, high = needed_box(centre, one, patch)
        low, high = np.maximum(low, 0), np.minimum(high, (60, 64, 56))
        box = volume[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        whole = moved(volume, centre, one, patch)
        torch.testing.assert_close(moved(box, centre - low, one, patch), whole, atol=1e-4, rtol=0)


def test_places_by_rows_are_exact_to_a_hundredth_of_a_voxel() -> None:
    """As many rows as a patch of 128^3 reads; a ramp tells the place of what it is read at."""
    sides, patch, centre = (210, 300, 9), (90, 80, 5), np.array([104.3, 150.2, 4.1])
    turn = np.deg2rad(25)
    matrix = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0]])
    one = Variation(matrix=np.vstack([1.3 * matrix, [0.01, 0, 0.7]]))
    ramps = torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in sides), indexing="ij"))
    # A box cut out of a volume is read where it lies: its rows are not next to each other.
    read = moved(ramps[:, :, 10:-10], centre - (0, 10, 0), one, patch).numpy()
    wrong = read - places(one, centre, patch)
    assert np.abs(wrong).max() < 0.01
    assert wrong.std(axis=(1, 2, 3)).max() < 0.002


def test_a_slice_is_resampled_in_its_plane() -> None:
    """A volume of one slice, against the same one with empty slices beside it."""
    one = replace(draw(5, dims=2), elastic=None)
    flat, patch = noise(2, 21, 17, 1), (12, 10, 1)
    thick = torch.nn.functional.pad(flat, (1, 1))
    for centre in ([10.2, 8.1, 0.0], [3.0, 15.5, 0.0]):
        expected = moved(thick, np.array([*centre[:2], 1.0]), one, patch)
        ours = moved(flat, np.array(centre), one, patch)
        torch.testing.assert_close(ours, expected, atol=5e-4, rtol=0)


def test_rotation_is_rigid_in_millimetres() -> None:
    plan = AugmentationPlan(affine_probability=1, scale=(1.0, 1.0))
    spacing = np.array([0.5, 2.0, 4.0])
    matrix = draw_variation(np.random.default_rng(4), plan, spatial_dims=3, spacing=spacing).matrix
    in_mm = np.diag(spacing) @ matrix @ np.diag(1 / spacing)
    np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-9)
    assert np.abs(in_mm - np.eye(3)).max() > 0.05


def test_two_dimensions_stay_in_their_plane() -> None:
    for seed in range(5):
        one = draw(seed, dims=2)
        np.testing.assert_array_equal(one.matrix[2], [0, 0, 1])
        np.testing.assert_array_equal(one.matrix[:, 2], [0, 0, 1])
        assert one.elastic is not None
        assert one.elastic.reach[2] == 0
        x = noise(1, 12, 10, 1, seed=seed)
        image = moved(x, np.array([5.5, 4.5, 0.0]), one, (12, 10, 1))
        assert vary_intensity(image[None], [one]).isfinite().all()


def test_the_same_draw_gives_the_same_voxels_in_any_batch() -> None:
    x = noise(3, 1, 9, 8, 7)
    first, second, calm = draw(1), draw(2), Variation()
    together = vary_intensity(x.clone(), [first, calm, second])
    alone = vary_intensity(x[2:].clone(), [second])
    again = vary_intensity(x[2:].clone(), [draw(2)])
    torch.testing.assert_close(together[2:], alone, atol=1e-6, rtol=1e-5)
    assert torch.equal(alone, again)
    assert torch.equal(together[1], x[1])
    assert not torch.equal(together[0], x[0])


def test_blur_equals_scipys_and_monais_gaussian() -> None:
    # Few taps and many, more than an axis is long, and so many that they are a matrix.
    for sigma, radius in ((0.8, 2), (2.6, 8), (3.4, 10)):
        thin = noise(2, 20, 6, 16)
        for mine, own in zip(varied(thin, blur_sigma=sigma), thin, strict=True):
            theirs = ndimage.gaussian_filter(own.numpy(), sigma, mode="nearest", radius=radius)
            np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-5)
    x = noise(2, 20, 18, 16)
    ours = varied(x, blur_sigma=0.8)
    for mine, own in zip(ours, x, strict=True):
        theirs = ndimage.gaussian_filter(own.numpy(), 0.8, mode="nearest", radius=2)
        np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-5)
    # MONAI cuts off at four sigma and fills with zeros: inside, a wide patch of one value in
    # the middle differs by what lies beyond three sigma alone.
    theirs = GaussianSmooth(sigma=0.8, approx="sampled")(x)
    inner = (slice(None), *[slice(4, -4)] * 3)
    assert float((ours[inner] - theirs[inner]).abs().max()) < 0.02


def test_gamma_equals_monais() -> None:
    x = noise(1, 11, 9, 8)
    for invert, name in ((False, "gamma"), (True, "inverse_gamma")):
        theirs = AdjustContrast(1.4, invert_image=invert, retain_stats=True)(x)
        torch.testing.assert_close(varied(x, **{name: 1.4}), theirs, atol=1e-4, rtol=0)
    # Nothing to bend in a patch of one value.
    flat = torch.full((1, 4, 3, 2), 2.5)
    torch.testing.assert_close(varied(flat, gamma=1.4), flat)


def test_gain_and_contrast_by_hand() -> None:
    x = torch.stack([torch.linspace(-1, 3, 24), torch.linspace(0, 9, 24)]).reshape(2, 4, 3, 2)
    torch.testing.assert_close(varied(x, gain=1.5), x * 1.5)
    mean = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(varied(x, contrast=0.5), (x - mean) * 0.5 + mean)
    wide = varied(x, contrast=2.0)
    assert wide[0].aminmax() == (pytest.approx(-1), pytest.approx(3))
    assert wide[1].aminmax() == (pytest.approx(0), pytest.approx(9))


def test_noise_has_the_deviation_of_monais() -> None:
    x = torch.zeros(1, 40, 40, 40)
    ours = varied(x, noise_std=0.2, noise_seed=5)
    theirs = RandGaussianNoise(prob=1, std=0.2, sample_std=False)
    theirs.set_random_state(0)
    other = theirs(x)
    assert float(ours.std()) == pytest.approx(0.2, rel=0.01)
    assert float(ours.std()) == pytest.approx(float(other.std()), rel=0.02)
    assert abs(float(ours.mean())) < 0.003
    assert not torch.equal(ours, varied(x, noise_std=0.2, noise_seed=6))


def test_bias_field_equals_monais() -> None:
    x = noise(1, 12, 10, 9).abs()
    x -= x.min()
    theirs = RandBiasField(prob=1, coeff_range=(-0.2, 0.2))
    theirs.set_random_state(3)
    expected = theirs(x)
    bias = np.zeros((4, 4, 4))
    order = [(i, j, k) for i in range(4) for j in range(4 - i) for k in range(4 - i - j)]
    for place, coefficient in zip(order, theirs._coeff, strict=True):
        bias[place] = coefficient
    torch.testing.assert_close(varied(x, bias=bias), torch.as_tensor(expected), atol=1e-4, rtol=0)


def test_low_resolution_equals_torchs() -> None:
    x = noise(2, 21, 16, 9)
    small = interpolate(x[None], size=(14, 11, 6), mode="nearest-exact")
    expected = interpolate(small, size=(21, 16, 9), mode="trilinear", align_corners=False)[0]
    torch.testing.assert_close(varied(x, coarseness=1.5), expected, atol=1e-5, rtol=0)


def test_a_spike_equals_monais_k_space() -> None:
    # A bright point that MONAI writes over a dark one, and its opposite.
    x = noise(1, 16, 12, 10)
    space = np.fft.fftn(x[0].numpy())
    spike = Spike(frequency=(3, -2, 4), phase=0.7, height=0.5)
    ours = varied(x, spike=spike)
    size, std = x[0].numel(), float(x.std())
    space[3, -2, 4] += 0.5 * std * size / 2 * np.exp(0.7j)
    space[-3, 2, -4] += 0.5 * std * size / 2 * np.exp(-0.7j)
    np.testing.assert_allclose(ours[0].numpy(), np.fft.ifftn(space).real, atol=1e-5)
    flat = torch.zeros(1, 16, 12, 10)
    loc = [(8 + 3, 6 - 2, 5 + 4), (8 - 3, 6 + 2, 5 - 4)]
    theirs = KSpaceSpikeNoise(loc, k_intensity=[5.0, 5.0])(flat)
    wave = varied(flat + x, spike=replace(spike, phase=0.0)) - x
    # The same wave but for its height: their k-space holds the logarithm of it.
    ratio = float(wave.abs().max() / theirs.abs().max())
    torch.testing.assert_close(wave, torch.as_tensor(theirs) * ratio, atol=1e-4, rtol=0)


def test_ghosts_and_motion_equal_k_space_by_hand() -> None:
    x = noise(1, 12, 15, 10)
    number = np.rint(np.fft.fftfreq(15) * 15)
    ghost = np.where((np.abs(number) % 3 == 0) & (number != 0), 1 - 0.6, 1.0)
    space = np.fft.fft(x[0].numpy(), axis=1) * ghost[:, None]
    ours = varied(x, lines=(Lines(1, every=3, strength=0.6),))
    np.testing.assert_allclose(ours[0].numpy(), np.fft.ifft(space, axis=1).real, atol=1e-5)
    # All lines shifted: the image moves round by whole voxels.
    matrix = line_matrix(15, Lines(1, shift=2.0, inner=0.0))
    np.testing.assert_allclose(matrix, np.roll(np.eye(15), 2, axis=0), atol=1e-12)
    # The inner lines stay, the outer ones move.
    mixed = np.fft.fft(line_matrix(15, Lines(1, shift=2.0, inner=0.5))[:, 0])
    still = np.abs(number) <= 0.25 * 15
    np.testing.assert_allclose(mixed[still], 1.0, atol=1e-12)
    np.testing.assert_allclose(
        mixed[~still], np.exp(-2j * np.pi * number[~still] * 2 / 15), atol=1e-12
    )


def test_boxes_are_cut_out() -> None:
    x = torch.ones(2, 10, 8, 5)
    ours = varied(x, boxes=(((0.5, 0.0, 0.5), (0.4, 0.5, 0.2)),))
    expected = x.clone()
    expected[:, 3:7, 0:2, 2:3] = 0
    assert torch.equal(ours, expected)


def test_labels_of_pairs_change_places() -> None:
    label = torch.tensor([0, 1, 2, 3, 255], dtype=torch.uint8)
    assert swapped(label, [(1, 3)]).tolist() == [0, 3, 2, 1, 255]
    assert swapped(label, ()) is label
    many = torch.tensor([0, 300, 7], dtype=torch.int32)
    assert swapped(many, [(7, 300)]).tolist() == [0, 7, 300]


def test_draws_are_spread_as_the_plan_says() -> None:
    plan = AugmentationPlan(
        rotation_degrees=20, affine_probability=0.4, intensity_probability=0.5,
        noise=Chance(probability=0.6, low=0.1, high=0.3), mirror_axes=(1,),
    )  # fmt: skip
    rngs = [np.random.default_rng([7, n]) for n in range(3000)]
    drawn = [draw_variation(rng, plan, spatial_dims=3, spacing=np.ones(3)) for rng in rngs]
    stds = np.array([one.noise_std for one in drawn if one.noise_std])
    assert len(stds) / 3000 == pytest.approx(0.3, abs=0.03)
    assert stds.mean() == pytest.approx(0.2, abs=0.006)
    assert stds.std() == pytest.approx(0.2 / np.sqrt(12), abs=0.004)
    assert np.mean([1 in one.mirrored for one in drawn]) == pytest.approx(0.5, abs=0.03)
    turned = [np.linalg.det(one.matrix) for one in drawn]
    assert np.mean(~np.isclose(np.abs(turned), 1)) == pytest.approx(0.4, abs=0.03)
    factors = np.cbrt(np.abs([t for t in turned if not np.isclose(abs(t), 1)]))
    # Even in the logarithm, so that larger and smaller are alike.
    assert np.log(factors).mean() == pytest.approx(np.log(0.7 * 1.4) / 2, abs=0.02)
    assert np.log(factors).std() == pytest.approx(np.log(2) / np.sqrt(12), abs=0.01)


@pytest.mark.parametrize("step", sorted(
    (one for one in vars(augment_steps).values()
     if isinstance(one, type) and hasattr(one, "step")), key=lambda one: one.step))  # fmt: skip
def test_each_step_runs_alone_in_monais_compose(step: Any) -> None:
    x = noise(2, 12, 10, 8)
    kept = x.clone()
    done = Compose([step(prob=1.0)]).set_random_state(seed=7)(x)
    again = Compose([step(prob=1.0)]).set_random_state(seed=7)(x)
    assert done.shape == x.shape
    assert not torch.equal(done, x)
    assert torch.equal(done, again)
    assert torch.equal(x, kept)
    assert torch.equal(step(prob=0.0)(x), x)


def test_every_step_of_the_plan_has_a_transform() -> None:
    known = {one.step for one in vars(augment_steps).values() if hasattr(one, "step")}
    assert known == set(STEPS)


def test_all_together_in_a_users_own_compose() -> None:
    image = noise(1, 12, 10, 8)
    label = (image > 0).to(torch.uint8)
    chain = Compose([RandVaryd(ALWAYS)]).set_random_state(seed=7)
    done = chain({"image": image, "label": label})
    assert done["image"].shape == image.shape
    assert set(done["label"].unique().tolist()) <= {0, 1}
    again = Compose([RandVaryd(ALWAYS)]).set_random_state(seed=7)({"image": image, "label": label})
    assert torch.equal(done["image"], again["image"])
    alone = Compose([RandMoved(prob=1.0, elastic_prob=1.0)]).set_random_state(seed=7)
    assert alone({"image": image})["image"].shape == image.shape


def test_mirroring_exchanges_labels_of_pairs_along_left_and_right_alone() -> None:
    image = noise(1, 6, 5, 4)
    label = torch.randint(0, 3, (1, 6, 5, 4), generator=torch.Generator().manual_seed(0))
    label = label.to(torch.uint8)
    seen = set()
    for seed in range(12):
        chain = RandMirrord((0, 1), pairs=[(1, 2)])
        done = chain.set_random_state(seed=seed)({"image": image, "label": label})
        for axes in ([], [1], [2], [1, 2]):
            if torch.equal(done["image"], image.flip(axes)):
                swap = torch.tensor([0, 2, 1], dtype=torch.uint8)[label.long()]
                expected = (swap if 1 in axes else label).flip(axes)
                assert torch.equal(done["label"], expected)
                seen.add(tuple(axes))
    assert len(seen) == 4
