"""The quick way through a header and nibabel's must tell the same."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from isal import igzip

from medseg.io.nifti import read_nifti
from medseg.io.nifti_header import NiftiHeader, parse_header, parse_plain, parse_with_nibabel
from medseg.io.stream import BROKEN, read_head, read_voxels

_RNG = np.random.Generator(np.random.PCG64(7))


def _header(shape: tuple[int, ...], dtype: str, **fields: object) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.dtype(dtype))
    header.set_data_shape(shape)
    turn, _ = np.linalg.qr(_RNG.standard_normal((3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * [0.7, 1.3, 2.9]
    affine[:3, 3] = _RNG.uniform(-100, 100, 3)
    header.set_qform(affine, code=2)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("micron")
    header["magic"] = header.single_magic
    for name, value in fields.items():
        header[name] = value
    return bytes(header.binaryblock)


def _assert_same(one: NiftiHeader, other: NiftiHeader) -> None:
    for name in ("version", "order", "single", "shape", "dtype", "offset", "scaling"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.mm_per_unit == other.mm_per_unit
    assert one.forms == other.forms
    np.testing.assert_array_equal(one.affine, other.affine)
    assert (one.qform is None) == (other.qform is None)
    if one.qform is not None and other.qform is not None:
        np.testing.assert_allclose(one.qform, other.qform, atol=1e-9)


@pytest.mark.parametrize("dtype", ["u1", "<i2", "<i4", "<f4", "<f8", "i1", "<u2", "<u4", "<i8"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 3, 2)])
def test_usual_headers_are_read_as_nibabel_reads_them(dtype: str, shape: tuple[int, ...]) -> None:
    block = _header(shape, dtype)
    plain = parse_plain(block)
    assert plain is not None
    _assert_same(plain, parse_with_nibabel(block, "a file"))


@pytest.mark.parametrize(
    "fields",
    [
        {"qform_code": 0},
        {"scl_slope": 0.5, "scl_inter": -3.0},
        {"scl_slope": 0.0},
        {"vox_offset": 368.0},
        {"quatern_b": 1.0, "quatern_c": 0.0, "quatern_d": 0.0},
        {"quatern_b": 0.6, "quatern_c": 0.8, "quatern_d": 1e-4},
        {"magic": b"ni1", "vox_offset": 16.0},
    ],
)
def test_rarer_values_too(fields: dict[str, object]) -> None:
    block = _header((6, 5, 4), "<i2", **({"scl_slope": 1.0, "scl_inter": 0.0} | fields))
    plain = parse_plain(block)
    assert plain is not None
    _assert_same(plain, parse_with_nibabel(block, "a file"))


@pytest.mark.parametrize(
    "fields",
    [
        {"sform_code": 0},
        {"sform_code": 77},
        {"pixdim": [1, 0, 1, 1, 1, 1, 1, 1]},
        {"pixdim": [1, -2, 1, 1, 1, 1, 1, 1]},
        {"pixdim": [0, 1, 1, 1, 1, 1, 1, 1]},
        {"bitpix": 7},
        {"datatype": 128},
        {"datatype": 32},
        {"vox_offset": 100.0},
        {"vox_offset": np.inf},
        {"vox_offset": 353.0},
        {"dim": [3, 0, 5, 4, 1, 1, 1, 1]},
        {"dim": [3, -1, 1, 1, 1, 1, 1, 1]},
        {"dim": [9, 5, 5, 4, 1, 1, 1, 1]},
        {"dim": [3, 27307, 1, 6, 1, 1, 1, 1]},
        {"scl_slope": np.nan},
        {"scl_inter": np.inf},
        {"srow_x": [np.nan, 0, 0, 0]},
    ],
)
def test_what_is_to_be_repaired_goes_to_nibabel(fields: dict[str, object]) -> None:
    usual = {"scl_slope": 1.0, "scl_inter": 0.0, "vox_offset": 352.0}
    assert parse_plain(_header((6, 5, 4), "<i2", **(usual | fields))) is None


def test_big_endian_and_nifti_2_go_to_nibabel() -> None:
    swapped = nib.Nifti1Header(_header((6, 5, 4), "<i2", scl_slope=1.0, scl_inter=0.0))
    block = bytes(swapped.as_byteswapped().binaryblock)
    assert parse_plain(block) is None
    assert parse_header(block, "a file").shape == (6, 5, 4)
    two = bytes(nib.Nifti2Image(np.zeros((6, 5, 4), np.int16), np.eye(4)).header.binaryblock)
    assert parse_plain(two) is None
    assert parse_header(two, "a file").version == 2


def test_what_cannot_be_repaired_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="9999"):
        parse_header(_header((6, 5, 4), "<i2", datatype=9999), "a file")


def test_a_mended_qform_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    block = bytearray(_header((6, 5, 4), "u1", scl_slope=1.0, scl_inter=0.0))
    struct.pack_into("<f", block, 268, struct.unpack_from("<f", block, 268)[0] + 9000.0)
    path = tmp_path / "apart.nii"
    path.write_bytes(bytes(block) + bytes(4 + 120))
    read_nifti(path)
    assert "disagree by up to 9 mm" in caplog.text


@pytest.mark.parametrize("members", [1, 2])
def test_small_files_are_read_at_once_and_others_as_they_were(tmp_path: Path, members: int) -> None:
    voxels = _RNG.integers(0, 900, (7, 6, 5), dtype=np.int16)
    data = bytes(352) + voxels.tobytes(order="F")
    half = len(data) // 2
    path = tmp_path / "a.nii.gz"
    parts = [data] if members == 1 else [data[:half], data[half:]]
    path.write_bytes(b"".join(gzip.compress(part) for part in parts))
    assert read_head(path, 540) == data[:540]
    got = read_voxels(path, offset=352, shape=(7, 6, 5), dtype=np.dtype("<i2"))
    np.testing.assert_array_equal(got, voxels)
    got[0] = 1  # whoever reads a scan may change it


def test_every_damaged_byte_of_a_small_file_is_an_error_or_harmless(tmp_path: Path) -> None:
    voxels = _RNG.integers(0, 3, (7, 6, 5), dtype=np.uint8)
    whole = igzip.compress(bytes(352) + voxels.tobytes(order="F"))
    path = tmp_path / "a.nii.gz"
    for at in range(12, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(BROKEN):
            read_voxels(path, offset=352, shape=(7, 6, 5), dtype=np.dtype("u1"))
        path.write_bytes(whole[:at])
        with pytest.raises(BROKEN):
            read_voxels(path, offset=352, shape=(7, 6, 5), dtype=np.dtype("u1"))
