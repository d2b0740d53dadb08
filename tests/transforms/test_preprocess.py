"""From scan to network grid and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, Orientation, ScaleIntensity

from medseg.core.errors import FileError, InputError
from medseg.core.geometry import ALL_ORIENTATIONS, Geometry
from medseg.core.plan import ChannelPlan
from medseg.core.scan import Scan
from medseg.transforms.load import LoadScan, LoadScand
from medseg.transforms.normalise import normalise
from medseg.transforms.preprocess import RestoreRecord, preprocess_scan
from medseg.transforms.restore import restore_classes
from medseg.transforms.steps import (
    Eachd,
    MakeRegular,
    NormaliseChannels,
    OrientToRAS,
    preprocessing,
)
from tests.models import small_plan
from tests.phantoms import blobs, lopsided_geometry, write_msd_dataset, write_nifti


def turned_scans() -> list[Scan]:
    base = lopsided_geometry(oblique=False)
    voxels = np.random.default_rng(0).normal(size=base.shape).astype(np.float32)
    return [
        Scan.from_array(o.apply(voxels), base.reoriented(o), source=str(o))
        for o in ALL_ORIENTATIONS
    ]


def test_orientation_agrees_with_monai_for_all_48() -> None:
    monai = Orientation(axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))
    for scan in turned_scans():
        ours = OrientToRAS()(LoadScan()(scan))
        theirs = monai(LoadScan()(scan))
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-9)


def test_restoring_undoes_orientation_and_keeps_each_label_in_its_voxel() -> None:
    spacing = (1.5, 2.0, 3.5)
    for scan in turned_scans():
        record = RestoreRecord.of(scan.geometry, spacing)
        classes = (np.arange(np.prod(scan.geometry.shape)) % 3).reshape(scan.geometry.shape)
        turned = np.ascontiguousarray(record.orientation.apply(classes))
        hot = torch.nn.functional.one_hot(torch.from_numpy(turned), 3).permute(3, 0, 1, 2)
        assert record.working.shape == tuple(turned.shape)
        np.testing.assert_array_equal(restore_classes(hot.float(), record), classes)


def test_working_grid_covers_the_same_box() -> None:
    geometry = lopsided_geometry((21, 17, 9))
    record = RestoreRecord.of(geometry, (1.0, 3.0, None))
    assert record.working.spacing_mm[2] == pytest.approx(record.oriented.spacing_mm[2])
    corner = np.array([-0.5, -0.5, -0.5, 1.0])
    far = np.array([*(np.array(record.working.shape) - 0.5), 1.0])
    far_before = np.array([*(np.array(record.oriented.shape) - 0.5), 1.0])
    np.testing.assert_allclose(
        record.working.affine_ras @ corner, record.oriented.affine_ras @ corner, atol=1e-9
    )
    np.testing.assert_allclose(
        record.working.affine_ras @ far, record.oriented.affine_ras @ far_before, atol=1e-9
    )


def test_normalisation_by_hand() -> None:
    voxels = torch.tensor([-1000.0, 0.0, 50.0, 100.0, 3000.0]).reshape(5, 1, 1)
    ct = ChannelPlan(name="CT", normalisation="ct", clip_low=-100, clip_high=200, mean=50, std=25)
    expected = torch.tensor([-6.0, -2.0, 0.0, 2.0, 6.0]).reshape(5, 1, 1)
    torch.testing.assert_close(normalise(voxels, ct), expected)
    z = normalise(voxels, ChannelPlan(name="MR", normalisation="zscore"))
    assert float(z.mean()) == pytest.approx(0, abs=1e-6)
    assert float(z.std(correction=0)) == pytest.approx(1, abs=1e-6)
    masked = normalise(voxels, ChannelPlan(name="MR", normalisation="zscore_nonzero"))
    assert float(masked[1]) == 0
    rest = masked[[0, 2, 3, 4]]
    assert float(rest.mean()) == pytest.approx(0, abs=1e-6)
    assert float(rest.std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_constant_scan_does_not_divide_by_zero() -> None:
    voxels = torch.full((3, 4, 5), 7.0)
    for kind in ("zscore", "zscore_nonzero"):
        channel = ChannelPlan(name="MR", normalisation=kind)  # type: ignore[arg-type]
        assert torch.isfinite(normalise(voxels, channel)).all()
        assert torch.isfinite(normalise(voxels * 0, channel)).all()


def test_label_lies_on_the_image_after_preprocessing(tmp_path: Path) -> None:
    folder = write_msd_dataset(tmp_path / "data", cases=3, spacing_mm=(2.0, 1.0, 4.0))
    plan = small_plan()
    for image in sorted((folder / "imagesTr").glob("*.nii.gz")):
        label = folder / "labelsTr" / image.name
        data = preprocessing(plan, with_mask=True)({"image": image, "label": label})
        assert data["image"].shape == data["label"].shape
        # The blobs are 300 and 600 over a background of 0: intensity tells the label.
        bright = [float(data["image"][data["label"] == value].mean()) for value in (0, 1, 2)]
        assert bright[0] < bright[1] < bright[2]


def test_steps_stand_in_a_users_own_compose(tmp_path: Path) -> None:
    image, _ = blobs()
    path = write_nifti(tmp_path / "x.nii.gz", image, np.diag([-2.0, 1.0, 3.0, 1.0]))
    chain = Compose(
        [LoadScand(["image"]), Eachd(["image"], OrientToRAS()), Eachd(["image"], ScaleIntensity())]
    )
    result = chain({"image": path})["image"]
    assert float(result.min()) == 0
    assert float(result.max()) == 1
    np.testing.assert_allclose(np.diag(result.affine)[:3], [2, 1, 3])


def test_non_finite_voxels_and_wrong_channels_are_named() -> None:
    geometry = Geometry((3, 4, 5), np.eye(4))
    voxels = np.zeros((3, 4, 5), dtype=np.float32)
    voxels[1, 2, 3] = np.nan
    with pytest.raises(FileError, match="1 that are NaN"):
        LoadScan()(Scan.from_array(voxels, geometry))
    two = NormaliseChannels(small_plan(channels=2).channels)
    with pytest.raises(InputError, match="expected 2"):
        two(LoadScan()(Scan.from_array(np.zeros((3, 4, 5)), geometry)))


def test_preprocess_scan_does_not_change_the_scan() -> None:
    geometry = lopsided_geometry((16, 12, 10))
    voxels = np.random.default_rng(1).normal(size=(16, 12, 10)).astype(np.float32)
    kept = voxels.copy()
    preprocess_scan(Scan.from_array(voxels, geometry), small_plan())
    np.testing.assert_array_equal(voxels, kept)


@pytest.mark.parametrize("tilt_degrees", [-25.0, -5.0, 5.0, 18.5, 25.0])
def test_a_tilted_scan_keeps_its_organs_in_place(tilt_degrees: float) -> None:
    # A CT whose slices are tilted about x: rows tilt, slices still step along z.
    tilt, size = np.deg2rad(tilt_degrees), (34, 30, 18)
    affine = np.eye(4)
    affine[:3, 0] = [-1.2, 0, 0]
    affine[:3, 1] = [0, -1.5 * np.cos(tilt), 1.5 * np.sin(tilt)]
    affine[:3, 2] = [0, 0, 4.0]
    affine[:3, 3] = [21.0, 17.0, -30.0]
    geometry = Geometry(size, affine)
    assert not geometry.is_regular
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    places = grid @ affine[:3, :3].T + affine[:3, 3]
    middle = affine[:3, :3] @ np.array([17, 15, 9]) + affine[:3, 3]
    organ = (np.linalg.norm((places - middle) / [9, 8, 14], axis=-1) < 1).astype(np.uint8)

    plan = small_plan(spacing_mm=(1.2, 1.5, 4.0))
    voxels, record = preprocess_scan(Scan.from_array(organ * 100.0, geometry), plan)
    assert record.working.is_regular
    # The centroid, in patient coordinates, on the network's grid and after the way back.
    half = float(voxels.max() + voxels.min()) / 2
    bright = (voxels[0] > half).numpy()
    seen = record.working.affine_ras[:3, :3] @ np.argwhere(bright).mean(axis=0)
    expected = places[organ > 0].mean(axis=0)
    assert np.abs((seen + record.working.affine_ras[:3, 3] - expected) / [1.2, 1.5, 4]).max() < 0.5
    logits = torch.stack([torch.zeros_like(voxels[0]), voxels[0] - half])
    back = restore_classes(logits, record)
    assert back.shape == size
    dice = 2 * (back * organ).sum() / (back.sum() + organ.sum())
    assert dice > 0.9


def test_the_cover_of_a_tilted_grid_holds_all_of_it_in_the_old_slices() -> None:
    affine = np.array([[0.8, 0, 0, 5], [0, 1.1, 0, -7], [0, 0.3, 3.5, 9], [0, 0, 0, 1]], float)
    geometry = Geometry((9, 11, 7), affine)
    cover = geometry.regular_cover()
    assert cover.is_regular
    assert geometry.regular_cover().spacing_mm[:2] == pytest.approx(geometry.spacing_mm[:2])
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in geometry.shape])).reshape(3, -1)
    inside = np.linalg.solve(cover.affine_ras, affine @ np.vstack([corners, np.ones(8)]))[:3]
    assert (inside > -1e-6).all()
    assert (inside < np.array(cover.shape)[:, None] - 1 + 1e-6).all()
    # Every old slice lies on a new one.
    assert np.abs(inside[2] - inside[2].round()).max() < 1e-6


def test_a_regular_grid_is_left_alone() -> None:
    base = lopsided_geometry()
    tensor = LoadScan()(Scan.from_array(np.zeros(base.shape), base))
    assert MakeRegular()(tensor) is tensor


def test_crop_order_and_orientation_keep_image_and_label_together(tmp_path: Path) -> None:
    folder = write_msd_dataset(tmp_path / "data", cases=2, spacing_mm=(2.0, 1.0, 4.0))
    changes = {
        "orientation": "stored",
        "axis_order": (2, 0, 1),
        "crop": "nonzero",
        "spacing_mm": (3.0, 1.7, 0.9),
        "resampling.image": {"order": 3, "coarse_order": 0, "separate": "auto"},
        "resampling.rounding": "half_even",
    }
    plan = small_plan(**changes)
    for image in sorted((folder / "imagesTr").glob("*.nii.gz")):
        label = folder / "labelsTr" / image.name
        data = preprocessing(plan, with_mask=True)({"image": image, "label": label})
        assert data["image"].shape == data["label"].shape
        np.testing.assert_allclose(data["image"].affine, data["label"].affine, atol=1e-9)
        bright = [float(data["image"][data["label"] == value].mean()) for value in (0, 1, 2)]
        assert bright[0] < bright[1] < bright[2]


def test_a_record_finds_the_way_back_from_a_cropped_and_turned_grid() -> None:
    geometry = lopsided_geometry((12, 10, 8))
    voxels = np.zeros((1, 12, 10, 8), dtype=np.float32)
    voxels[:, 2:9, 1:10, 3:5] = np.arange(126).reshape(1, 7, 9, 2) + 1
    as_stored = small_plan(
        orientation="stored", axis_order=(1, 2, 0), crop="nonzero", spacing_mm=(None,) * 3
    )
    plain = (ChannelPlan(name="first", normalisation="none"),)
    plan = as_stored.model_copy(update={"channels": plain})
    working, record = preprocess_scan(Scan.from_array(voxels, geometry), plan)
    assert record.crop == (slice(1, 10), slice(3, 5), slice(2, 9))
    assert tuple(working.shape) == (1, 9, 2, 7)
    whole = np.zeros(record.oriented.shape, dtype=np.float32)
    whole[record.crop] = working[0].numpy()
    np.testing.assert_array_equal(record.orientation.inverse().apply(whole), voxels[0])
    # A voxel keeps its place in the patient.
    np.testing.assert_allclose(
        record.working.affine_ras @ [4, 1, 5, 1], geometry.affine_ras @ [7, 5, 4, 1], atol=1e-9
    )
