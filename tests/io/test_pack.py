"""Bytes out: numpy's own order, and gzip that the standard library and nibabel read."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest

from medseg.core.errors import FileError, ResourceError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.results import Prediction
from medseg.io import pack, stream
from medseg.io.formats import read_scan, write_mask
from medseg.io.pack import fortran_bytes, write_gzip
from tests.phantoms import lopsided_geometry, lopsided_volume, write_nifti


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64])
@pytest.mark.parametrize("shape", [(11, 8, 6), (5, 7, 1), (3, 9, 17), (1, 1, 8), (40, 13, 24)])
def test_fortran_bytes_are_those_of_numpy(shape: tuple[int, int, int], dtype: Any) -> None:
    array = lopsided_volume(shape)[0].astype(dtype)
    views = (array, np.asfortranarray(array), array[::-1, :, ::-1], array.transpose(1, 2, 0))
    for view in views:
        assert bytes(fortran_bytes(view)) == view.tobytes(order="F")


@pytest.mark.parametrize("piece_bytes", [100, 1 << 22])
def test_pieces_are_one_gzip_member(monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    monkeypatch.setattr(pack, "_PIECE_BYTES", piece_bytes)
    array = lopsided_volume((31, 28, 26))[0]
    files = []
    for threads in (1, 3):
        monkeypatch.setattr(pack, "_MAX_THREADS", threads)
        file = io.BytesIO()
        write_gzip(file, b"a head", array)
        files.append(file.getvalue())
    expected = b"a head" + array.tobytes(order="F")
    assert files[0] == files[1]
    assert gzip.decompress(files[0]) == expected
    one_member = zlib.decompressobj(zlib.MAX_WBITS | 16)
    assert one_member.decompress(files[0]) == expected
    assert one_member.eof
    assert one_member.unused_data == b""


def test_a_large_mask_in_several_pieces_is_read_by_nibabel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "_PIECE_BYTES", 5000)
    geometry = lopsided_geometry((31, 28, 26))
    mask = (lopsided_volume(geometry.shape)[0] % 3).astype(np.uint8)
    labels = LabelSet.from_names({1: "a", 2: "b"})
    write_mask(tmp_path / "a.nii.gz", Prediction(mask, geometry, labels))
    assert np.array_equal(nib.load(tmp_path / "a.nii.gz").dataobj, mask)


def test_a_scan_larger_than_the_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels, affine = lopsided_volume((31, 28, 26))
    scan = read_scan(write_nifti(tmp_path / "a.nii.gz", voxels, affine))
    monkeypatch.setattr(stream, "_SMALL_BYTES", 0)
    assert np.array_equal(scan.voxels()[0], voxels)
    free = type("Memory", (), {"available": 1000})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(ResourceError, match="GB of free memory"):
        scan.voxels()


def test_what_follows_the_voxels_is_not_unpacked_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    voxels, affine = lopsided_volume((31, 28, 26))
    path = write_nifti(tmp_path / "a.nii", voxels, affine)
    bomb = tmp_path / "bomb.nii.gz"
    bomb.write_bytes(gzip.compress(path.read_bytes() + bytes(9 << 20)))
    assert np.array_equal(read_scan(bomb).voxels()[0], voxels)
    assert not caplog.records
    monkeypatch.setattr(stream, "_MAX_TAIL_BYTES", 1 << 20)
    assert np.array_equal(read_scan(bomb).voxels()[0], voxels)
    assert "more than its header says" in caplog.text


def test_every_byte_of_a_gzip_is_checked(tmp_path: Path) -> None:
    """A flipped bit anywhere behind the header of gzip is an error, never other voxels."""
    voxels, affine = lopsided_volume((11, 8, 6))
    geometry = Geometry(voxels.shape, affine)
    mask = Prediction((voxels % 7).astype(np.uint8), geometry, LabelSet.from_names({6: "a"}))
    write_mask(tmp_path / "a.nii.gz", mask)
    content = (tmp_path / "a.nii.gz").read_bytes()
    for position in range(10, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        (tmp_path / "b.nii.gz").write_bytes(damaged)
        with pytest.raises(FileError):
            read_scan(tmp_path / "b.nii.gz").voxels()
