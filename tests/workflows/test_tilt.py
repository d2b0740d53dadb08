"""Tilted and sheared scans: each organ comes back where it lies in the patient."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import nn

import medseg
from medseg.core.errors import SettingsError
from medseg.core.plan import ChannelPlan, PostprocessStep
from medseg.inference.predictor import Predictor
from medseg.workflows.api import Model
from tests.dicom_phantoms import Series
from tests.models import small_plan
from tests.phantoms import write_nifti

SIZE = (36, 32, 20)
SPACING = (1.2, 1.5, 3.0)
# Organs as ellipsoids: centre in voxels, radii in mm, HU.
ORGANS = {1: ((11, 14, 9), (9.0, 11.0, 13.0), 300), 2: ((26, 19, 12), (6.0, 9.0, 10.0), 700)}


class ByIntensity(nn.Module):
    """A network that knows the organs by their HU: 0, 300 and 700."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([-(x - level).abs() for level in (0.0, 300.0, 700.0)], dim=1)


def model() -> Model:
    plan = small_plan(**{"spacing_mm": (1.2, 1.5, 3.0), "training.batch_size": 1})
    ct = ChannelPlan(
        name="CT", normalisation="ct", clip_low=-100.0, clip_high=1000.0, mean=0.0, std=1.0
    )
    # Where the brighter organ fades into air it passes through the other's HU.
    clean = PostprocessStep(step="largest", label="low")
    plan = plan.model_copy(update={"channels": (ct,), "postprocess": (clean,)})
    return Model(Predictor([ByIntensity()], plan, torch.device("cpu")), sha256="none")


def phantom(affine_ras: NDArray[np.float64]) -> tuple[NDArray[np.int16], dict[int, NDArray]]:
    """Voxels (I, J, K), and the centroid of each organ in RAS mm."""
    grid = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), axis=-1)
    places = grid @ affine_ras[:3, :3].T + affine_ras[:3, 3]
    voxels, centroids = np.zeros(SIZE, dtype=np.int16), {}
    for value, (centre, radii, level) in ORGANS.items():
        middle = affine_ras[:3, :3] @ np.array(centre) + affine_ras[:3, 3]
        inside = np.linalg.norm((places - middle) / radii, axis=-1) < 1
        voxels[inside] = level
        centroids[value] = places[inside].mean(axis=0)
    return voxels, centroids


def tilted(degrees: float) -> tuple[Series, NDArray[np.float64], dict[int, NDArray]]:
    """A CT series whose gantry is tilted: slices step along z, rows lie at an angle."""
    angle = np.deg2rad(degrees)
    axes = np.eye(3)
    axes[:, 1] = [0, np.cos(angle), np.sin(angle)]
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    series = Series(
        np.zeros(SIZE, np.int16), axes=axes, spacing_mm=SPACING,
        step_mm=np.array([0.0, 0.0, SPACING[2]]),
    )  # fmt: skip
    affine = series.affine_ras()
    series.voxels, centroids = phantom(affine)
    return series, affine, centroids


def check_centroids(mask: nib.Nifti1Image, centroids: dict[int, NDArray]) -> None:
    labels = np.asarray(mask.dataobj)
    for value, expected in centroids.items():
        found = mask.affine[:3, :3] @ np.argwhere(labels == value).mean(axis=0)
        away = (found + mask.affine[:3, 3] - expected) / SPACING
        assert np.abs(away).max() < 0.5


@pytest.mark.parametrize("degrees", [-25.0, -12.5, -5.0, 5.0, 18.5, 25.0])
def test_a_tilted_ct_comes_back_in_place(degrees: float, tmp_path: Path) -> None:
    series, affine, centroids = tilted(degrees)
    study = series.write(tmp_path / "study")
    done = medseg.predict(model(), [study], tmp_path / "out", save_scan=True)["done"]
    (path,) = done.values()
    mask = nib.load(path)
    check_centroids(mask, centroids)
    # At right angles: ITK opens it, where it would refuse the tilt.
    image = sitk.ReadImage(path)
    steps = mask.affine[:3, :3] / np.linalg.norm(mask.affine[:3, :3], axis=0)
    np.testing.assert_allclose(steps.T @ steps, np.eye(3), atol=1e-6)
    assert image.GetSize() == mask.shape
    scan = nib.load(path.replace(".nii.gz", "_scan.nii.gz"))
    assert scan.shape == mask.shape
    np.testing.assert_allclose(scan.affine, mask.affine, atol=1e-5)
    # The scan beside it shows each organ under its label.
    voxels = np.asarray(scan.dataobj)
    for value, (_, _, level) in ORGANS.items():
        assert np.median(voxels[np.asarray(mask.dataobj) == value]) == pytest.approx(level, abs=60)

    own = medseg.predict(model(), [study], tmp_path / "own", grid="own")["done"]
    (path,) = own.values()
    np.testing.assert_allclose(nib.load(path).affine, affine, atol=1e-4)
    check_centroids(nib.load(path), centroids)


def test_a_sheared_nifti_keeps_its_header_and_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, affine, centroids = tilted(18.5)
    path = tmp_path / "x.nii.gz"
    header = nib.Nifti1Image(phantom(affine)[0], affine)
    header.set_sform(affine, code=1)
    header.set_qform(None, code=0)
    nib.save(header, path)
    with caplog.at_level(logging.WARNING, logger="medseg"):
        result = model().predict(path)
    assert "--grid regular" in caplog.text
    assert result.labels.shape == SIZE
    np.testing.assert_allclose(result.affine, affine, atol=1e-4)
    regular = model().predict(path, grid="regular")
    assert regular.prediction.geometry.is_regular
    result.save(tmp_path / "own.nii.gz")
    regular.save(tmp_path / "regular.nii.gz")
    sitk.ReadImage(str(tmp_path / "regular.nii.gz"))
    for name in ("own", "regular"):
        check_centroids(nib.load(tmp_path / f"{name}.nii.gz"), centroids)


def test_a_scan_at_right_angles_keeps_its_grid_whatever_is_asked(tmp_path: Path) -> None:
    affine = np.diag([-1.2, 1.5, 3.0, 1.0])
    path = write_nifti(tmp_path / "x.nii.gz", phantom(affine)[0], affine)
    own, regular = (model().predict(path, grid=grid) for grid in ("own", "regular"))
    assert own.prediction.geometry == regular.prediction.geometry
    np.testing.assert_array_equal(own.labels, regular.labels)
    assert regular.prediction.forms is not None


def test_an_unknown_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="auto or own or regular"):
        medseg.predict(model(), [tmp_path], tmp_path / "out", grid="slanted")
