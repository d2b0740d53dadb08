"""GIPL against SimpleITK, MGH against nibabel: the same places and voxels, or one error."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medseg.core.errors import FileError, GeometryError
from medseg.io.formats import case_name, find_scans, read_mask, read_scan, write_mask
from tests.phantoms import lopsided_volume, oblique_affine

SHAPE = (11, 8, 6)


def _gipl(path: Path, voxels: np.ndarray) -> Any:
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    image.SetSpacing((1.5, 2.0, 3.5))
    image.SetOrigin((-31.0, 17.5, 42.25))
    sitk.WriteImage(image, str(path))
    return sitk.ReadImage(str(path))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "f4", "f8"])
@pytest.mark.parametrize("suffix", [".gipl", ".gipl.gz"])
def test_gipl_agrees_with_simpleitk(tmp_path: Path, dtype: str, suffix: str) -> None:
    voxels = (lopsided_volume(SHAPE)[0] % 120).astype(dtype)
    image = _gipl(tmp_path / f"a{suffix}", voxels)
    scan = read_scan(tmp_path / f"a{suffix}")
    origin, spacing, direction = scan.geometry.to_lps()
    assert scan.geometry.shape == image.GetSize()
    assert np.allclose(origin, image.GetOrigin())
    assert np.allclose(spacing, image.GetSpacing())
    assert np.allclose(direction, image.GetDirection())
    assert scan.voxels().dtype == np.dtype(dtype)
    assert np.array_equal(scan.voxels()[0].T, sitk.GetArrayFromImage(image))


def test_a_fourth_axis_of_gipl_is_channels(tmp_path: Path) -> None:
    voxels = lopsided_volume(SHAPE)[0]
    image = sitk.JoinSeries([sitk.GetImageFromArray(voxels.T + n) for n in range(3)])
    sitk.WriteImage(image, str(tmp_path / "a.gipl"))
    assert np.array_equal(
        read_scan(tmp_path / "a.gipl").voxels(), np.stack([voxels + n for n in range(3)])
    )


def test_content_and_not_the_name_tells_gipl_and_mgh(tmp_path: Path) -> None:
    voxels, affine = lopsided_volume(SHAPE)
    _gipl(tmp_path / "a.gipl.gz", voxels)
    nib.save(nib.MGHImage(voxels.astype(np.int32), affine), tmp_path / "b.mgz")
    for name in ("a.gipl.gz", "b.mgz"):
        (tmp_path / name).rename(tmp_path / "other.nii")
        assert np.array_equal(read_scan(tmp_path / "other.nii").voxels()[0], voxels)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
@pytest.mark.parametrize("suffix", [".mgh", ".mgz"])
@pytest.mark.parametrize("frames", [1, 3])
def test_mgh_agrees_with_nibabel(tmp_path: Path, dtype: str, suffix: str, frames: int) -> None:
    voxels = (lopsided_volume((*SHAPE[:2], SHAPE[2] * frames))[0] % 120).astype(dtype)
    voxels = voxels.reshape(*SHAPE, frames) if frames > 1 else voxels
    path = tmp_path / f"a{suffix}"
    content = nib.MGHImage(voxels, oblique_affine()).to_bytes()
    image = nib.MGHImage.from_bytes(content)
    path.write_bytes(gzip.compress(content) if suffix == ".mgz" else content)
    scan = read_scan(path)
    assert np.array_equal(scan.geometry.affine_ras, image.affine)
    assert np.allclose(scan.geometry.affine_ras, oblique_affine(), atol=1e-4)
    got = scan.voxels()
    assert got.dtype == np.dtype(dtype)
    assert len(scan.channels) == frames
    assert np.array_equal(np.moveaxis(got, 0, -1).reshape(voxels.shape), image.dataobj)


def test_mgh_without_a_place_is_refused(tmp_path: Path) -> None:
    content = bytearray(nib.MGHImage(lopsided_volume(SHAPE)[0], oblique_affine()).to_bytes())
    content[28:30] = b"\0\0"
    (tmp_path / "a.mgh").write_bytes(content)
    with pytest.raises(GeometryError, match="goodRASFlag 0"):
        read_scan(tmp_path / "a.mgh")


def test_masks_and_names(tmp_path: Path) -> None:
    mask = (lopsided_volume(SHAPE)[0] % 4).astype(np.uint8)
    _gipl(tmp_path / "a.b.gipl.gz", mask)
    nib.save(nib.MGHImage(mask, oblique_affine()), tmp_path / "c.mgz")
    found = find_scans(tmp_path)
    assert [case_name(path) for path in found] == ["a.b", "c"]
    for path in found:
        assert np.array_equal(read_mask(path)[0], mask)
        with pytest.raises(FileError, match=r"\.nii\.gz"):
            write_mask(tmp_path / "x.mgz", None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a.gipl", "a.gipl.gz", "a.mgh", "a.mgz"])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.97])
def test_a_truncated_file_is_one_error(tmp_path: Path, name: str, keep: float) -> None:
    voxels, affine = lopsided_volume((31, 28, 26))
    path = tmp_path / name
    if "gipl" in name:
        _gipl(path, voxels)
    else:
        content = nib.MGHImage(voxels.astype(np.int32), affine).to_bytes()
        path.write_bytes(gzip.compress(content) if name == "a.mgz" else content)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(FileError):
        read_scan(path).voxels()


@pytest.mark.parametrize("packed", [False, True])
def test_false_promises_and_types_are_refused(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "a.gipl"
    _gipl(path, lopsided_volume(SHAPE)[0])
    gipl = path.read_bytes()
    mgh = nib.MGHImage(lopsided_volume(SHAPE)[0], oblique_affine()).to_bytes()
    wide = struct.pack(">3H", 60000, 60000, 60000)
    for content, error, word in (
        (wide + gipl[6:], FileError, "bytes"),
        (gipl[:8] + struct.pack(">H", 192) + gipl[10:], FileError, "type 192"),
        (gipl[:10] + bytes(12) + gipl[22:], GeometryError, "a.x: affine"),
        (gipl[:10] + struct.pack(">3f", np.inf, np.nan, 1e38) + gipl[22:], GeometryError, "affine"),
        (mgh[:4] + struct.pack(">3i", 60000, 60000, 60000) + mgh[16:], FileError, "bytes"),
        (mgh[:20] + struct.pack(">i", 5) + mgh[24:], FileError, "type 5"),
        (mgh[:30] + bytes(12) + mgh[42:], GeometryError, "a.x: affine"),
    ):
        (tmp_path / "a.x").write_bytes(gzip.compress(content) if packed else content)
        with pytest.raises(error, match=word):
            read_scan(tmp_path / "a.x")
