"""NRRD and MetaImage headers that ITK must never follow, and odd ones that it may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from medseg.core.errors import FileError
from medseg.io.formats import read_scan
from medseg.io.itk_header import check_header
from tests.phantoms import lopsided_volume

SHAPE = (11, 8, 6)


def _image() -> Any:
    image = sitk.GetImageFromArray(np.ascontiguousarray(lopsided_volume(SHAPE)[0].T))
    image.SetSpacing((1.5, 2.0, 3.5))
    image.SetOrigin((-31.0, 17.5, 42.25))
    return image


def _written(folder: Path, suffix: str, *, packed: bool = False) -> Path:
    path = folder / f"a{suffix}"
    sitk.WriteImage(_image(), str(path), packed)
    return path


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("packed", [False, True])
def test_what_itk_writes_holds_what_it_promises(tmp_path: Path, suffix: str, packed: bool) -> None:
    promise = check_header(_written(tmp_path, suffix, packed=packed))
    assert promise.voxel_bytes == 11 * 8 * 6 * 2
    assert promise.held_bytes >= promise.voxel_bytes
    if not packed:
        assert promise.held_bytes == promise.voxel_bytes


@pytest.mark.parametrize(
    ("suffix", "old", "new", "word"),
    [
        (".mha", b"DimSize = 11 8 6", b"DimSize = 10000 10000 10000", "bytes"),
        (".mha", b"DimSize = 11 8 6", b"DimSize = 11 8 -6", "DimSize"),
        (".mha", b"DimSize = 11 8 6", b"DimSize = 11 8 0", "at least 1"),
        (".mha", b"DimSize = 11 8 6", b"DimSize = 11 8", "NDims"),
        (".mha", b"NDims = 3", b"NDims = 99", "NDims"),
        (".mha", b"NDims = 3", b"NDims = 3\nNDims = 99", "two"),
        (".mha", b"NDims = 3", b"NDims = 3\nndims : 99", "two"),
        (".mha", b"MET_SHORT", b"MET_OTHER", "ElementType"),
        (".mha", b"MET_SHORT", b"MET_SHORT\nElementNumberOfChannels = 99999999", "bytes"),
        (".mha", b"ElementDataFile = LOCAL", b"Comment = a", "another line"),
        (".nrrd", b"sizes: 11 8 6", b"sizes: 10000 10000 10000", "bytes"),
        (".nrrd", b"sizes: 11 8 6", b"sizes: 11 8", "dimensions"),
        (".nrrd", b"dimension: 3", b"dimension: 16", "dimensions"),
        (".nrrd", b"sizes: 11 8 6", b"sizes: 11 8 6\nsizes: 9 9 999999", "two"),
        (".nrrd", b"type: short", b"type: block", "block"),
        (".nrrd", b"encoding: raw", b"encoding: bzip2", "bzip2"),
        (".mhd", b"ElementDataFile = a.raw", b"ElementDataFile = b.raw", "no such file"),
        (".mhd", b"ElementDataFile = a.raw", b"ElementDataFile = ../secret.raw", "elsewhere"),
        (".mhd", b"ElementDataFile = a.raw", b"ElementDataFile = /etc/passwd", "elsewhere"),
        (".mhd", b"a.raw", b"LIST\na.raw\n../secret.raw", "elsewhere"),
        (".mhd", b"a.raw", b"../secr%dt.raw 1 6 1", "elsewhere"),
        (".mhd", b"a.raw", b"a%s%99999999d.raw 1 6 1", "no such file|pattern"),
        (".mhd", b"a.raw", b"a%d.raw 1 999999 1", "65536|no such file"),
        (".nhdr", b"data file: a.raw", b"data file: ../secret.raw", "elsewhere"),
        (".nhdr", b"data file: a.raw", b"data file: LIST\n../secret.raw", "elsewhere"),
    ],
)
def test_headers_that_itk_must_not_follow(
    tmp_path: Path, suffix: str, old: bytes, new: bytes, word: str
) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(5000))
    folder = tmp_path / "in"
    folder.mkdir()
    path = _written(folder, suffix)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    with pytest.raises(FileError, match=word) as caught:
        read_scan(path)
    assert "secret" not in str(caught.value)


def test_a_link_to_voxels_elsewhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = _written(tmp_path / "in", ".mhd")
    (tmp_path / "in" / "a.raw").rename(tmp_path / "other.raw")
    (tmp_path / "in" / "a.raw").symlink_to(tmp_path / "other.raw")
    with pytest.raises(FileError, match="elsewhere"):
        read_scan(path)


@pytest.mark.parametrize("named", ["LIST", "pattern"])
def test_a_file_per_slice_is_read_as_itk_reads_it(tmp_path: Path, named: str) -> None:
    path = _written(tmp_path, ".mhd")
    voxels = (tmp_path / "a.raw").read_bytes()
    names = [f"s{number}.raw" for number in range(1, 7)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(voxels[number * 176 : (number + 1) * 176])
    listed = "LIST\n" + "\n".join(names) if named == "LIST" else "s%d.raw 1 6 1"
    path.write_text(path.read_text().replace("a.raw", listed))
    (tmp_path / "a.raw").unlink()
    assert np.array_equal(read_scan(path).voxels()[0], lopsided_volume(SHAPE)[0])


def test_text_voxels_and_windows_lines(tmp_path: Path) -> None:
    values = lopsided_volume(SHAPE)[0]
    text = " ".join(str(value) for value in values.ravel(order="F"))
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 11 8 6\nencoding: ascii\n\n"
    (tmp_path / "a.nrrd").write_text(head + text + "\n")
    assert np.array_equal(read_scan(tmp_path / "a.nrrd").voxels()[0], values)
    raw = head.replace("ascii", "raw\nendian: little").replace("\n", "\r\n").encode()
    (tmp_path / "b.nrrd").write_bytes(raw + values.astype("<i2").tobytes(order="F"))
    assert np.array_equal(read_scan(tmp_path / "b.nrrd").voxels()[0], values)


def test_the_name_does_not_choose_the_reader(tmp_path: Path) -> None:
    for suffix in (".nrrd", ".mha"):
        path = _written(tmp_path, suffix).rename(tmp_path / "other.dat")
        assert np.array_equal(read_scan(path).voxels()[0], lopsided_volume(SHAPE)[0])


def test_a_header_that_changes_after_it_was_checked(tmp_path: Path) -> None:
    path = _written(tmp_path, ".mha")
    scan = read_scan(path)
    path.write_bytes(path.read_bytes().replace(b"NDims = 3", b"NDims = 90"))
    with pytest.raises(FileError, match="NDims"):
        scan.voxels()
