"""Reading NIfTI: the same voxels and affine as nibabel, and one clear error for bad files."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.errors import FileError, GeometryError, MedsegError
from medseg.io.formats import read_mask, read_scan
from medseg.io.nifti import read_nifti, scan_from_nibabel
from tests.phantoms import lopsided_volume, oblique_affine, write_nifti

SHAPE = (11, 8, 6)


def _same_as_nibabel(path: Path) -> None:
    image = nib.load(path)
    scan = read_scan(path)
    assert np.array_equal(scan.geometry.affine_ras, image.affine)
    expected = np.asarray(image.dataobj).reshape((*scan.geometry.shape, -1), order="F")
    got = scan.voxels()
    assert got.dtype.isnative
    assert np.allclose(np.moveaxis(got, 0, -1), expected, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_versions_pairs_compression_and_byte_order(
    tmp_path: Path, kind: Any, packed: str, order: str
) -> None:
    voxels, affine = lopsided_volume(SHAPE, oblique=True)
    image = kind(voxels, affine, kind.header_class(endianness=order))
    image.header.set_data_dtype(np.dtype(np.int16).newbyteorder(order))
    pair = "Pair" in kind.__name__
    path = tmp_path / f"a.{'img' if pair else 'nii'}{packed}"
    nib.save(image, path)
    scan = read_scan(path)
    assert scan.voxels().dtype == np.int16
    assert np.array_equal(scan.voxels()[0], voxels)
    assert scan.forms is not None
    assert scan.forms.version == (2 if "Nifti2" in kind.__name__ else 1)
    _same_as_nibabel(path)
    if pair:
        assert np.array_equal(read_scan(tmp_path / f"a.hdr{packed}").voxels()[0], voxels)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_the_number_type_of_the_file_is_kept(tmp_path: Path, dtype: str) -> None:
    voxels = (lopsided_volume(SHAPE)[0] % 120).astype(dtype)
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(voxels, oblique_affine(), dtype=dtype), path)
    got = read_scan(path).voxels()
    assert got.dtype == np.dtype(dtype)
    assert np.array_equal(got[0], voxels)


def test_scaled_integers_become_float32(tmp_path: Path) -> None:
    voxels, affine = lopsided_volume(SHAPE)
    # nibabel takes the array as what is stored when slope and intercept are stated.
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_slope_inter(0.25, -7.5)
    nib.save(image, tmp_path / "a.nii")
    got = read_scan(tmp_path / "a.nii").voxels()
    assert got.dtype == np.float32
    assert np.array_equal(got[0], voxels * 0.25 - 7.5)


@pytest.mark.parametrize(
    ("stored", "channels", "grid"),
    [
        ((9, 7), 1, (9, 7, 1)),
        ((9, 7, 1), 1, (9, 7, 1)),
        ((9, 7, 5), 1, (9, 7, 5)),
        ((9, 7, 5, 1), 1, (9, 7, 5)),
        ((9, 7, 5, 3), 3, (9, 7, 5)),
        ((9, 7, 1, 2), 2, (9, 7, 1)),
        ((9, 7, 5, 1, 3), 3, (9, 7, 5)),
    ],
)
def test_dimensions_become_channels_and_grid(
    tmp_path: Path, stored: tuple[int, ...], channels: int, grid: tuple[int, int, int]
) -> None:
    voxels = np.arange(np.prod(stored), dtype=np.int16).reshape(stored)
    path = write_nifti(tmp_path / "a.nii.gz", voxels, oblique_affine())
    scan = read_scan(path)
    assert scan.geometry.shape == grid
    assert len(scan.channels) == channels
    assert scan.forms is not None
    assert scan.forms.grid_shape == stored[:3]
    _same_as_nibabel(path)


def test_two_moving_dimensions_are_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", np.zeros((4, 3, 2, 5, 6), np.int16), np.eye(4))
    with pytest.raises(FileError, match="channels"):
        read_scan(path)


def test_sform_comes_before_qform(tmp_path: Path) -> None:
    voxels, affine = lopsided_volume(SHAPE)
    image = nib.Nifti1Image(voxels, affine)
    other = oblique_affine(origin_mm=(1.0, 2.0, 3.0))
    image.set_qform(other, code=1)
    for code, expected in ((2, affine), (0, other)):
        image.set_sform(affine, code=code)
        nib.save(image, tmp_path / "a.nii")
        assert np.allclose(read_scan(tmp_path / "a.nii").geometry.affine_ras, expected, atol=1e-4)


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000.0), ("mm", 1.0), ("micron", 0.001)])
def test_units_become_mm(tmp_path: Path, unit: str, mm: float) -> None:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), oblique_affine())
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    geometry = read_scan(tmp_path / "a.nii").geometry
    assert np.allclose(geometry.spacing_mm, np.array((1.5, 2.0, 3.5)) * mm)
    itk = sitk.ReadImage(str(tmp_path / "a.nii"))
    origin, spacing, _ = geometry.to_lps()
    assert np.allclose(itk.GetSpacing(), spacing)
    assert np.allclose(itk.GetOrigin(), origin)


def test_a_sheared_volume_is_read_as_it_is(tmp_path: Path) -> None:
    affine = oblique_affine()
    affine[:3, 2] += 0.2 * affine[:3, 1]
    image = nib.Nifti1Image(lopsided_volume(SHAPE)[0], affine)
    nib.save(image, tmp_path / "a.nii")
    assert np.allclose(read_scan(tmp_path / "a.nii").geometry.affine_ras, affine, atol=1e-5)
    assert read_scan(tmp_path / "a.nii").geometry.shear_voxels > 0.1


def test_2d_with_an_empty_third_axis_gets_1_mm(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((5, 4), np.uint8), None)
    image.header["sform_code"] = 1
    image.header["srow_x"], image.header["srow_y"] = [-2, 0, 0, 9], [0, -3, 0, 8]
    image.to_filename(tmp_path / "a.nii")
    geometry = read_scan(tmp_path / "a.nii").geometry
    assert np.array_equal(geometry.affine_ras[:3, 2], [0.0, 0.0, 1.0])


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    voxels, affine = lopsided_volume(SHAPE)
    packed = write_nifti(tmp_path / "a.nii.gz", voxels, affine)
    shutil.copy(packed, tmp_path / "really_packed.nii")
    (tmp_path / "not_packed.nii.gz").write_bytes(gzip.decompress(packed.read_bytes()))
    for name in ("really_packed.nii", "not_packed.nii.gz"):
        assert np.array_equal(read_scan(tmp_path / name).voxels()[0], voxels)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_file_is_one_error(tmp_path: Path, keep: float, suffix: str) -> None:
    voxels, affine = lopsided_volume((31, 28, 26))
    path = write_nifti(tmp_path / f"a{suffix}", voxels, affine)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(FileError, match=r"a\.nii") as caught:
        read_scan(path).voxels()
    assert "\n" not in str(caught.value)
    assert "again" in caught.value.cure


def test_a_damaged_byte_in_a_gzip_is_found(tmp_path: Path) -> None:
    voxels, affine = lopsided_volume((31, 28, 26))
    path = write_nifti(tmp_path / "a.nii.gz", voxels, affine)
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # in the checksum: every voxel is still there
    path.write_bytes(content)
    with pytest.raises(FileError, match="CRC"):
        read_scan(path).voxels()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_promises_too_much_is_refused_before_memory_is_taken(
    tmp_path: Path, suffix: str
) -> None:
    path = write_nifti(tmp_path / "a.nii", *lopsided_volume(SHAPE))
    raw = bytearray(path.read_bytes())
    raw[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    path = tmp_path / f"b{suffix}"
    path.write_bytes(gzip.compress(bytes(raw)) if suffix == ".nii.gz" else bytes(raw))
    with pytest.raises(FileError, match="bytes"):
        read_scan(path)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"this is a text\n" * 100, "something else"),
        (gzip.compress(b"", mtime=0), "empty"),
        (gzip.compress(b"a text " * 200, mtime=0), "something else"),
        (b"\x1f\x8b\x08\x00rubbish", "whole file"),
        (bytes(128) + b"DICM" + bytes(600), "DICOM"),
    ],
    ids=["nothing", "text", "packed nothing", "packed text", "gzip cut short", "DICOM"],
)
def test_what_is_no_scan_is_refused(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    with pytest.raises(FileError, match=word):
        read_scan(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        read_scan(tmp_path / "missing.nii.gz")
    with pytest.raises(FileError, match="got none"):
        read_scan(tmp_path)


def test_colour_and_complex_volumes_are_refused_with_a_cure(tmp_path: Path) -> None:
    colour = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, np.eye(4)), tmp_path / "rgb.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.complex64), np.eye(4)), tmp_path / "complex.nii")
    with pytest.raises(FileError, match="red-green-blue") as caught:
        read_scan(tmp_path / "rgb.nii.gz")
    assert caught.value.cure
    with pytest.raises(FileError, match="complex64"):
        read_scan(tmp_path / "complex.nii")


def test_an_affine_of_zeros_is_a_geometry_error_with_the_file(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), None)
    image.header["sform_code"] = 1
    image.to_filename(tmp_path / "a.nii")
    with pytest.raises(GeometryError, match=r"a\.nii: affine"):
        read_scan(tmp_path / "a.nii")


def test_a_pair_without_its_voxels(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(np.zeros(SHAPE, np.uint8), np.eye(4)), tmp_path / "a.img")
    (tmp_path / "a.img").unlink()
    with pytest.raises(FileError, match=r"a\.img beside it"):
        read_scan(tmp_path / "a.hdr")


def test_a_file_that_changes_after_its_header_was_read(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", *lopsided_volume(SHAPE))
    scan = read_scan(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(FileError):
        scan.voxels()
    path.unlink()
    with pytest.raises(FileError, match="no such file"):
        scan.voxels()


@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_scan_from_nibabel_is_the_scan_of_the_file(tmp_path: Path, slope: float) -> None:
    voxels, affine = lopsided_volume((*SHAPE[:2], 4), oblique=True)
    image = nib.Nifti1Image(voxels * slope, affine)
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(slope, 0)
    nib.save(image, tmp_path / "a.nii")
    file, loaded = read_scan(tmp_path / "a.nii"), scan_from_nibabel(nib.load(tmp_path / "a.nii"))
    assert loaded.geometry == file.geometry
    assert loaded.forms == file.forms
    assert loaded.voxels().dtype == file.voxels().dtype
    assert np.array_equal(loaded.voxels(), file.voxels())


def test_scan_from_nibabel_in_memory_and_other_kinds() -> None:
    voxels, affine = lopsided_volume(SHAPE, oblique=True)
    scan = scan_from_nibabel(nib.Nifti1Image(voxels, affine))
    assert np.array_equal(scan.voxels()[0], voxels)
    assert scan.forms is not None
    freesurfer = scan_from_nibabel(nib.MGHImage(voxels.astype(np.int32), affine))
    assert freesurfer.forms is None
    assert np.allclose(freesurfer.geometry.affine_ras, affine, atol=1e-4)


def test_a_mask_of_whole_real_numbers_is_taken(tmp_path: Path) -> None:
    mask = (lopsided_volume(SHAPE)[0] % 5).astype(np.float32)
    values, scan = read_mask(write_nifti(tmp_path / "a.nii.gz", mask, oblique_affine()))
    assert values.dtype.kind == "i"
    assert np.array_equal(values, mask)
    assert scan.geometry.shape == SHAPE


@pytest.mark.parametrize(
    ("value", "word"), [(1.5, "1.5"), (-1.0, "-1"), (np.nan, "nan"), (np.inf, "inf"), (1e30, "1e")]
)
def test_a_mask_with_a_value_that_is_no_label(tmp_path: Path, value: float, word: str) -> None:
    mask = np.zeros(SHAPE, np.float32)
    mask[3, 2, 1] = value
    path = write_nifti(tmp_path / "a.nii.gz", mask, oblique_affine())
    with pytest.raises(MedsegError, match=word):
        read_mask(path)


def test_a_negative_integer_and_two_channels_are_no_mask(tmp_path: Path) -> None:
    mask = np.zeros((*SHAPE, 2), np.int16)
    path = write_nifti(tmp_path / "two.nii.gz", mask, oblique_affine())
    with pytest.raises(FileError, match="2 channels"):
        read_mask(path)
    mask[0, 0, 0, 0] = -3
    path = write_nifti(tmp_path / "negative.nii.gz", mask[..., 0], oblique_affine())
    with pytest.raises(MedsegError, match="-3"):
        read_mask(path)


def test_reading_the_header_leaves_the_voxels_alone(tmp_path: Path) -> None:
    """Geometry of a large compressed file comes without unpacking it."""
    path = write_nifti(tmp_path / "a.nii.gz", *lopsided_volume((31, 28, 26)))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert read_nifti(path).geometry.shape == (31, 28, 26)


_HEADER = bytes(nib.Nifti1Image(lopsided_volume(SHAPE)[0], oblique_affine()).to_bytes())


@given(
    edits=st.lists(
        st.tuples(st.integers(0, 351), st.sampled_from([0, 1, 2, 127, 128, 255])),
        min_size=1,
        max_size=4,
    ),
    keep=st.integers(0, len(_HEADER)) | st.just(len(_HEADER)),
)
def test_a_damaged_header_is_read_or_is_one_error(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], keep: int
) -> None:
    content = bytearray(_HEADER)
    for position, value in edits:
        content[position] = value
    path = tmp_path_factory.getbasetemp() / "damaged.nii"
    path.write_bytes(content[:keep])
    try:
        scan = read_scan(path)
        scan.voxels()
    except MedsegError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most headers raise, some do not


def test_a_nibabel_image_whose_file_is_gone(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", *lopsided_volume(SHAPE))
    scan = scan_from_nibabel(nib.load(path))
    path.unlink()
    with pytest.raises(FileError, match="no such file"):
        scan.voxels()


def _two_forms(path: Path, *, turn_deg: float, shift_mm: float) -> Path:
    voxels, affine = lopsided_volume(SHAPE)
    other = oblique_affine(angles_deg=(0.0, 0.0, turn_deg))
    other[:3, 3] += (0.0, 0.0, shift_mm)
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=2)
    image.set_qform(other, code=1)
    nib.save(image, path)
    return path


def test_forms_that_disagree_are_told_in_mm_and_degrees(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _two_forms(tmp_path / "a.nii", turn_deg=0.0, shift_mm=4.0)
    affine = lopsided_volume(SHAPE)[1]
    assert np.allclose(read_scan(path).geometry.affine_ras, affine, atol=1e-5)
    assert "up to 4 mm and 0 degrees" in caplog.text
    caplog.clear()
    # Turned about the first voxel, the far corner moves by its distance times 2 sin(15 deg).
    read_scan(_two_forms(tmp_path / "b.nii", turn_deg=30.0, shift_mm=0.0))
    far_mm = np.hypot(10 * 1.5, 7 * 2.0) * 2 * np.sin(np.deg2rad(15.0))
    assert f"up to {far_mm:.3g} mm and 30 degrees" in caplog.text


def test_forms_that_agree_are_not_spoken_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_scan(_two_forms(tmp_path / "a.nii", turn_deg=0.0, shift_mm=0.1))
    read_scan(write_nifti(tmp_path / "b.nii", *lopsided_volume(SHAPE, oblique=True)))
    assert not caplog.records
