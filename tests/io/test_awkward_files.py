"""Every file of the awkward collection: its geometry and voxels, or the exact error.

``awkward_files.csv`` holds a row a file. Shape, type, affine and CRC-32 (of the voxels
(C, I, J, K) as little-endian bytes) are what nibabel or, for formats it does not read,
SimpleITK says (column ``truth``), not what medseg said once. Column ``itk`` tells how
SimpleITK's reading of the same file compares; docs/awkward_files.md explains each difference.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from medseg.core.errors import MedsegError
from medseg.io.formats import read_scan
from medseg.io.itk import scan_from_sitk

_TABLE = Path(__file__).with_name("awkward_files.csv")
_ROWS = list(csv.DictReader(_TABLE.read_text(encoding="utf-8").splitlines()))
_BY_BOTH = [row for row in _ROWS if row["itk"]]


def _named(row: dict[str, str]) -> str:
    return row["file"]


def test_every_file_has_a_row(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("nifti_awkward")
    there = {path.relative_to(folder).as_posix() for path in folder.glob("*/*")}
    assert {row["file"] for row in _ROWS} == there
    assert len(_ROWS) == len(there)


@pytest.mark.parametrize("row", _ROWS, ids=_named)
def test_a_scan_or_the_exact_error(shared_data: Callable[[str], Path], row: dict[str, str]) -> None:
    path = shared_data("nifti_awkward") / row["file"]
    if row["outcome"] != "scan":
        with pytest.raises(MedsegError) as caught:
            read_scan(path).voxels()
        assert type(caught.value).__name__ == row["outcome"]
        assert row["says"] in caught.value.got
        return
    scan = read_scan(path)
    affine = np.array(row["affine_ras_mm"].split(), dtype=np.float64).reshape(3, 4)
    assert np.allclose(scan.geometry.affine_ras[:3], affine, atol=1e-6)
    voxels = scan.voxels()
    assert " ".join(str(size) for size in voxels.shape) == row["shape"]
    assert voxels.dtype.name == row["dtype"]
    stored = np.ascontiguousarray(voxels.astype(voxels.dtype.newbyteorder("<"), copy=False))
    assert f"{zlib.crc32(stored.data):08x}" == row["crc32"]


@pytest.mark.parametrize("row", _BY_BOTH, ids=_named)
def test_simpleitk_reads_the_same_or_differs_as_explained(
    shared_data: Callable[[str], Path], row: dict[str, str]
) -> None:
    path = shared_data("nifti_awkward") / row["file"]
    if row["itk"] == "refused":
        with pytest.raises(RuntimeError):
            sitk.ReadImage(str(path))
        return
    ours, theirs = read_scan(path), scan_from_sitk(sitk.ReadImage(str(path)))
    got, expected = ours.voxels(), theirs.voxels()
    if row["itk"] == "nan is 0":
        assert not expected[np.isnan(got)].any()
        got = np.nan_to_num(got, nan=0.0)
    assert np.allclose(got, expected, rtol=1e-6, equal_nan=True)
    differs = np.abs(ours.geometry.affine_ras - theirs.geometry.affine_ras).max(axis=0) > 1e-4
    assert differs.tolist() == [False, False, row["itk"] == "third axis", False]


@pytest.mark.parametrize("name", ["X300", "Y300", "Z150", "nan", "nan_seg"])
def test_metaimages_by_hand(shared_data: Callable[[str], Path], name: str) -> None:
    """The same voxels and places without ITK: text, and zlib or plain bytes behind it."""
    path = shared_data("nifti_awkward") / "itksnap" / f"{name}.mha"
    head, _, body = path.read_bytes().partition(b"ElementDataFile = LOCAL\n")
    fields = dict(line.split(" = ") for line in head.decode("ascii").splitlines())
    dtype: Any = {"MET_USHORT": "<u2", "MET_FLOAT": "<f4"}[fields["ElementType"].strip()]
    shape = [int(size) for size in fields["DimSize"].split()]
    data = zlib.decompress(body) if fields["CompressedData"].strip() == "True" else body
    voxels = np.frombuffer(data, dtype).reshape(shape, order="F")
    scan = read_scan(path)
    assert np.array_equal(scan.voxels()[0].reshape(shape), voxels, equal_nan=True)
    assert fields["TransformMatrix"].split() == [str(int(v)) for v in np.eye(len(shape)).ravel()]
    origin, spacing, _ = scan.geometry.to_lps()
    assert np.allclose(spacing[: len(shape)], [float(v) for v in fields["ElementSpacing"].split()])
    assert np.allclose(origin[: len(shape)], [float(v) for v in fields["Offset"].split()])
