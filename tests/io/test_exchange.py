"""Scans as images of nibabel and SimpleITK, and back: the inverse gives the same scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import medseg
from medseg.core.errors import GeometryError
from medseg.core.geometry import ALL_ORIENTATIONS, Geometry
from medseg.core.scan import Scan
from medseg.io.exchange import scan_to_nibabel, scan_to_sitk
from medseg.io.formats import read_scan
from medseg.io.itk import scan_from_sitk
from medseg.io.nifti import scan_from_nibabel
from tests.phantoms import lopsided_volume, write_nifti

SHAPE = (11, 8, 6)


def _scan(channels: int = 1, *, dtype: Any = np.int16, shear: float = 0.0) -> Scan:
    voxels, affine = lopsided_volume(SHAPE, oblique=True)
    affine[:3, 2] += shear * affine[:3, 1]
    several = np.stack([voxels + number for number in range(channels)]).astype(dtype)
    return Scan.from_array(several, Geometry(SHAPE, affine))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.int64, np.float32, np.bool_])
def test_there_and_back(tmp_path: Path, channels: int, dtype: Any) -> None:
    scan = _scan(channels, dtype=dtype)
    nib.save(scan_to_nibabel(scan), tmp_path / "a.nii.gz")
    sitk.WriteImage(scan_to_sitk(scan), str(tmp_path / "a.nrrd"))
    for back in (
        scan_from_nibabel(scan_to_nibabel(scan)),
        scan_from_sitk(scan_to_sitk(scan)),
        read_scan(tmp_path / "a.nii.gz"),
        read_scan(tmp_path / "a.nrrd"),
    ):
        assert back.geometry.difference(scan.geometry) is None
        assert np.array_equal(back.voxels(), scan.voxels())
        assert back.voxels().dtype == (np.uint8 if dtype is np.bool_ else dtype)


def test_places_agree_in_every_orientation() -> None:
    voxels, affine = lopsided_volume(SHAPE, oblique=True)
    for turn in ALL_ORIENTATIONS[::5]:
        geometry = Geometry(SHAPE, affine).reoriented(turn)
        scan = Scan.from_array(turn.apply(voxels), geometry)
        image, itk = scan_to_nibabel(scan), scan_to_sitk(scan)
        assert np.allclose(image.get_qform(), geometry.affine_ras, atol=1e-4)
        index = (2, 1, 4)
        x, y, z = itk.TransformIndexToPhysicalPoint(index)
        assert np.allclose((image.affine @ [*index, 1])[:3], [-x, -y, z], atol=1e-4)
        assert itk[index] == image.dataobj[index] == scan.voxels()[0][index]


def test_a_sheared_scan_is_for_nibabel_alone(caplog: pytest.LogCaptureFixture) -> None:
    scan = _scan(shear=0.3)
    image = scan_to_nibabel(scan)
    assert np.allclose(image.affine, scan.geometry.affine_ras, atol=1e-4)
    assert int(image.header["qform_code"]) == 0
    with pytest.raises(GeometryError, match="strays"):
        scan_to_sitk(scan)


def test_a_side_too_long_for_nifti_1() -> None:
    scan = Scan.from_array(np.zeros((40000, 2, 1), np.uint8), Geometry((40000, 2, 1), np.eye(4)))
    assert isinstance(scan_to_nibabel(scan), nib.Nifti2Image)


def test_the_scan_that_users_hold_has_the_ways_out(tmp_path: Path) -> None:
    voxels, affine = lopsided_volume(SHAPE, oblique=True)
    scan = medseg.read_scan(write_nifti(tmp_path / "a.nii.gz", voxels, affine))
    assert isinstance(scan, medseg.Scan)
    assert np.allclose(scan.to_nibabel().affine, affine, atol=1e-4)
    assert np.array_equal(scan.to_nibabel().dataobj, voxels)
    assert np.array_equal(sitk.GetArrayFromImage(scan.to_sitk()).T, voxels)
    own = medseg.Scan.from_array(voxels, scan.geometry)
    assert np.array_equal(own.to_nibabel().dataobj, voxels)
