"""One series in, compared with SimpleITK's reader, with hand-computed values, and by hand."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from medseg.core.errors import FileError, GeometryError
from medseg.io.dicom import find_series, read_dicom
from medseg.io.formats import read_scan
from tests.dicom_phantoms import SYNTAXES, Series, random_voxels, save


def read_by_sitk(folder: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels (I, J, K) and the affine in RAS."""
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    voxels = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    return voxels, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_equals_simpleitk_in_every_syntax(syntax: str, tmp_path: Path) -> None:
    series = Series(random_voxels(), syntax=syntax)
    scan = read_scan(series.write(tmp_path / "s"))
    voxels, affine = read_by_sitk(tmp_path / "s")
    np.testing.assert_array_equal(scan.voxels()[0], voxels)
    np.testing.assert_allclose(scan.geometry.affine_ras, affine, atol=1e-4)
    np.testing.assert_allclose(scan.geometry.affine_ras, series.affine_ras(), atol=1e-4)
    assert scan.modality == "CT"
    assert scan.voxels().dtype == np.int16


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1)])
def test_axial_sagittal_coronal(order: tuple[int, int, int], tmp_path: Path) -> None:
    axes = np.eye(3)[:, list(order)]
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    series = Series(random_voxels(), axes=axes)
    scan = read_scan(series.write(tmp_path / "s"))
    voxels, affine = read_by_sitk(tmp_path / "s")
    np.testing.assert_array_equal(scan.voxels()[0], voxels)
    np.testing.assert_allclose(scan.geometry.affine_ras, affine, atol=1e-4)


def test_list_of_files(tmp_path: Path) -> None:
    series = Series(random_voxels())
    files = sorted(series.write(tmp_path / "s").iterdir())
    Series(random_voxels(seed=1), uid="1.2.3").write(tmp_path / "other")
    np.testing.assert_array_equal(read_scan(files).voxels()[0], series.voxels)
    with pytest.raises(FileError, match="no such file"):
        read_dicom([*files, tmp_path / "absent.dcm"])
    with pytest.raises(FileError, match="got none"):
        read_dicom([])


def test_slices_against_the_normal_come_out_in_order(tmp_path: Path) -> None:
    series = Series(random_voxels())
    series.step_mm = -series.step
    scan = read_dicom(series.write(tmp_path / "s"))
    np.testing.assert_array_equal(scan.voxels()[0], series.voxels[:, :, ::-1])
    corner = series.affine_ras() @ [0, 0, series.voxels.shape[2] - 1, 1]
    np.testing.assert_allclose(scan.geometry.affine_ras[:, 3], corner, atol=1e-4)


def test_slope_and_intercept_per_slice(tmp_path: Path) -> None:
    voxels = random_voxels().astype(np.uint16) % 4096
    slopes, intercepts = (0.5, 1.25, 2.0, 0.1, 7.5, 1.0), (0.0, -3.5, 10.0, 0.0, 1.0, -1024.0)
    series = Series(voxels, tags={"RescaleSlope": slopes, "RescaleIntercept": intercepts})
    scan = read_dicom(series.write(tmp_path / "s"))
    expected = voxels.astype(np.float64) * slopes + intercepts
    np.testing.assert_allclose(scan.voxels()[0], expected, rtol=1e-6, atol=1e-3)
    assert scan.voxels().dtype == np.float32


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    voxels = (random_voxels().astype(np.int32) + 1000).astype(np.uint16)
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "BitsStored": 12, "HighBit": 11}
    series = Series(voxels, tags=tags)
    scan = read_dicom(series.write(tmp_path / "s"))
    np.testing.assert_array_equal(scan.voxels()[0], voxels.astype(np.int32) - 1024)
    assert scan.voxels().dtype == np.int16
    np.testing.assert_array_equal(scan.voxels()[0], read_by_sitk(tmp_path / "s")[0])


def test_bits_above_the_stored_ones_are_no_image(tmp_path: Path) -> None:
    clean = (random_voxels().astype(np.int32) + 1000).astype(np.uint16)
    tags = {"BitsStored": 12, "HighBit": 11}
    overlaid = clean | np.uint16(0x8000) * (clean % 2)
    Series(overlaid, tags=tags).write(tmp_path / "s")
    np.testing.assert_array_equal(read_dicom(tmp_path / "s").voxels()[0], clean)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "deflated", "big endian"])
def test_enhanced_multiframe(syntax: str, tmp_path: Path) -> None:
    series = Series(random_voxels(), syntax=syntax)
    scan = read_dicom(series.write_enhanced(tmp_path / "e.dcm"))
    slices = np.arange(series.voxels.shape[2])
    expected = series.voxels.astype(np.float64) * (1 + slices) - 10 * slices
    np.testing.assert_allclose(scan.voxels()[0], expected)
    np.testing.assert_allclose(scan.geometry.affine_ras, series.affine_ras(), atol=1e-4)


@pytest.mark.parametrize("tilt", [-25.0, -5.0, 18.5])
def test_gantry_tilt_gives_a_sheared_affine(tilt: float, tmp_path: Path) -> None:
    angle = np.radians(tilt)
    axes = np.eye(3)
    axes[:, 1] = [0.0, np.cos(angle), np.sin(angle)]
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    series = Series(random_voxels(), axes=axes, step_mm=np.array([0.0, 0.0, 3.0]))
    series.write(tmp_path / "s")
    scan = read_dicom(tmp_path / "s")
    np.testing.assert_allclose(scan.geometry.affine_ras, series.affine_ras(), atol=1e-4)
    assert find_series(tmp_path / "s")[0].tilt_degrees == pytest.approx(abs(tilt), abs=0.01)


def test_uneven_gaps_are_named_then_bridged(tmp_path: Path) -> None:
    voxels = np.zeros((13, 9, 4), dtype=np.int16)
    voxels[...] = [0, 100, 300, 400]
    series = Series(voxels, places=[0, 1, 3, 4])
    series.write(tmp_path / "s")
    with pytest.raises(GeometryError, match=r"2\.5 mm x2, 5 mm x1.*--accept-gaps"):
        read_scan(tmp_path / "s")
    scan = read_scan(tmp_path / "s", accept_gaps=True)
    assert scan.geometry.shape == (13, 9, 5)
    np.testing.assert_allclose(scan.geometry.affine_ras, series.affine_ras(), atol=1e-4)
    np.testing.assert_array_equal(scan.voxels()[0, 0, 0], [0, 100, 200, 300, 400])


def test_slightly_uneven_slices_are_even(tmp_path: Path) -> None:
    series = Series(random_voxels(), places=[0, 1.02, 1.99, 3.0, 4.01, 5.0])
    scan = read_dicom(series.write(tmp_path / "s"))
    np.testing.assert_array_equal(scan.voxels()[0], series.voxels)


def test_no_message_and_no_log_tells_of_the_patient(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    series = Series(random_voxels(), places=[0, 1, 2, 3, 3, 4])
    series.write(tmp_path / "s")
    (info,) = find_series(tmp_path / "s")
    with pytest.raises(GeometryError, match="6 slices at 5 positions") as caught:
        read_scan(tmp_path / "s")
    told = f"{caught.value} {info!r} {info.name} {caplog.text}"
    for secret in ("Doe", "Secret", "77123", "1960"):
        assert secret not in told


def test_pixels_that_are_cut_off(tmp_path: Path) -> None:
    folder = Series(random_voxels()).write(tmp_path / "s")
    victim = sorted(folder.iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:-20])
    with pytest.raises(FileError, match="pixels cut off"):
        read_scan(folder)


def test_pixels_that_do_not_decode(tmp_path: Path) -> None:
    folder = Series(random_voxels((64, 64, 3)), syntax="RLE").write(tmp_path / "s")
    victim = sorted(folder.iterdir())[1]
    data = bytearray(victim.read_bytes())
    data[-2000:] = b"\xff" * 2000
    victim.write_bytes(bytes(data))
    scan = read_scan(folder)
    with pytest.raises(FileError, match="pixels that can be decoded"):
        scan.voxels()


def test_colour_is_refused(tmp_path: Path) -> None:
    series = Series(random_voxels((8, 6, 3)))
    for k in range(3):
        ds = series.dataset(k)
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
        ds.PixelData = bytes(8 * 6 * 3)
        (tmp_path / "s").mkdir(exist_ok=True)
        save(ds, tmp_path / "s" / f"{k}.dcm")
    with pytest.raises(FileError, match="colour pixels"):
        read_scan(tmp_path / "s")


def test_chaos_ct_from_its_zip(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shared_data("chaos_ct_liver")
    scan = read_scan(folder / "dicom.zip")
    with zipfile.ZipFile(folder / "dicom.zip") as archive:
        archive.extractall(tmp_path)
    voxels, affine = read_by_sitk(tmp_path / "dicom")
    np.testing.assert_array_equal(scan.voxels()[0], voxels)
    np.testing.assert_allclose(scan.geometry.affine_ras, affine, atol=1e-4)
    masks = sorted((folder / "labels").glob("*.nii.gz"))
    assert masks
    for path in masks:
        mask = nib.load(path)
        assert mask.shape == scan.geometry.shape
        np.testing.assert_allclose(mask.affine, scan.geometry.affine_ras, atol=1e-3)
