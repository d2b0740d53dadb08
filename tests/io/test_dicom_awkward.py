"""Every file and series of the awkward DICOM folder: what it must come to, or the exact error.

``dicom_awkward.csv`` holds one row each: the path, which series of it, whether gaps are
accepted; then shape, spacing, axes and a CRC-32 of the voxels, or the class of the error and
what it names. ``peer`` says who reads the same: SimpleITK, pydicom frame by frame, or nibabel
for mosaics. docs/dicom.md explains where readings differ.
"""

from __future__ import annotations

import csv
import gzip
import io
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from medseg.core import errors
from medseg.core.scan import Scan
from medseg.io.dicom import SeriesInfo, find_series, read_series

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
with (Path(__file__).parent / "dicom_awkward.csv").open(encoding="utf-8") as table:
    ROWS = list(csv.DictReader(table))


def name_of(row: dict[str, str]) -> str:
    return f"{row['path']}[{row['series']}]{'+gaps' if row['gaps'] == '1' else ''}"


def voxels_of(scan: Scan) -> NDArray[Any]:
    return scan.voxels()[0]


def checksum(voxels: NDArray[Any]) -> str:
    """CRC-32 of the voxels as little-endian float32, K slowest."""
    return f"{zlib.crc32(np.ascontiguousarray(voxels.T).astype('<f4').tobytes()):08x}"


def same_as_sitk(info: SeriesInfo, scan: Scan, folder: Path) -> None:
    for number, part in enumerate(info.parts):
        (folder / f"{number}.dcm").write_bytes(part.read())
    reader = sitk.ImageSeriesReader()
    # Else a tilted gantry is straightened, and the voxels lie where they were not.
    reader.ForceOrthogonalDirectionOff()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute() if len(info.parts) > 1 else sitk.ReadImage(str(folder / "0.dcm"))
    theirs = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    ours, places = voxels_of(scan), info.stack.places_k
    # Of uneven slices those are compared that lie on the even grid.
    fixed = [k for k, place in enumerate(places) if abs(place - round(place)) < 1e-3]
    assert len(fixed) > 1 or len(places) == 1
    on_grid = ours[:, :, [round(places[k]) for k in fixed]]
    np.testing.assert_allclose(on_grid, theirs[:, :, fixed], rtol=1e-5, atol=1e-6)
    known = [0, 1, 2, 3]
    if len(places) == 1 or not info.stack.even:
        # One slice has no distance to the next; of uneven ones ITK has but a mean.
        known.remove(2)
    expected = (RAS_FROM_LPS @ affine)[:, known]
    np.testing.assert_allclose(scan.geometry.affine_ras[:, known], expected, atol=1e-4)


def same_as_pydicom(info: SeriesInfo, scan: Scan, folder: Path) -> None:
    voxels = voxels_of(scan)
    files = {part: pydicom.dcmread(io.BytesIO(part.read())) for part in info.parts}
    for k, piece in enumerate(info.stack.slices):
        ds = files[piece.part]
        if "PerFrameFunctionalGroupsSequence" in ds:
            slope, intercept, position = in_functional_groups(ds, piece.frame)
        else:
            # A dose grid, axial; its frames are offset along z.
            slope, intercept = 1.0, 0.0
            offset = ds.get("GridFrameOffsetVector", [0.0])
            offsets = [offset] if isinstance(offset, float) else list(offset)
            x, y, z = ds.ImagePositionPatient
            position = [x, y, z + offsets[piece.frame] - offsets[0]]
        frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
        expected = frames[piece.frame].T * slope + intercept
        np.testing.assert_allclose(voxels[:, :, k], expected, rtol=1e-5, atol=1e-3)
        ours = scan.geometry.affine_ras @ [0, 0, k, 1]
        np.testing.assert_allclose(ours, RAS_FROM_LPS @ [*position, 1.0], atol=0.02)


def in_functional_groups(ds: pydicom.Dataset, frame: int) -> tuple[float, float, list[float]]:
    """Slope, intercept and position of a frame, as pydicom's own attributes give them."""
    group = ds.PerFrameFunctionalGroupsSequence[frame]
    shared = ds.SharedFunctionalGroupsSequence[0]
    values = group if "PixelValueTransformationSequence" in group else shared
    slope, intercept = 1.0, 0.0
    if "PixelValueTransformationSequence" in values:
        slope = float(values.PixelValueTransformationSequence[0].RescaleSlope)
        intercept = float(values.PixelValueTransformationSequence[0].RescaleIntercept)
    return slope, intercept, list(group.PlanePositionSequence[0].ImagePositionPatient)


def same_as_nibabel(info: SeriesInfo, scan: Scan, folder: Path) -> None:
    # Its import warns that it is experimental.
    from nibabel.nicom.dicomwrappers import wrapper_from_data

    data = info.parts[0].path.read_bytes()
    data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    mosaic = wrapper_from_data(pydicom.dcmread(io.BytesIO(data)))
    # nibabel's axes are rows, columns, slices, and its world is LPS.
    np.testing.assert_array_equal(voxels_of(scan), mosaic.get_data().transpose(1, 0, 2))
    affine = (RAS_FROM_LPS @ mosaic.affine)[:, [1, 0, 2, 3]]
    np.testing.assert_allclose(scan.geometry.affine_ras, affine, atol=1e-4)


PEERS = {"SimpleITK": same_as_sitk, "pydicom": same_as_pydicom, "nibabel": same_as_nibabel}


# pydicom tells of one file that claims an explicit VR and is implicit; it reads it rightly.
@pytest.mark.filterwarnings("ignore:Expected explicit VR:UserWarning")
@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_awkward(row: dict[str, str], shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    path = shared_data("dicom_awkward") / row["path"]
    if row["error"]:
        kind = getattr(errors, row["error"])
        with pytest.raises(errors.MedsegError) as caught:
            read(path, row).voxels()
        assert type(caught.value) is kind
        assert row["names"] in str(caught.value)
        return
    scan = read(path, row)
    assert "x".join(map(str, scan.geometry.shape)) == row["shape"]
    assert "x".join(f"{side:.4g}" for side in scan.geometry.spacing_mm) == row["spacing_mm"]
    assert scan.geometry.axis_codes == row["axes"]
    assert checksum(voxels_of(scan)) == row["crc32"]
    if row["peer"] in PEERS:
        info = find_series(path)[int(row["series"])]
        with warnings.catch_warnings():
            # Of the peer, about values that the standard does not allow.
            warnings.simplefilter("ignore")
            PEERS[row["peer"]](info, scan, tmp_path)


def read(path: Path, row: dict[str, str]) -> Scan:
    series = find_series(path)[int(row["series"])]
    return read_series(series, accept_gaps=row["gaps"] == "1")


def test_every_file_has_a_row(shared_data: Callable[[str], Path]) -> None:
    root = shared_data("dicom_awkward")
    rows = {row["path"] for row in ROWS}
    no_dicom = (".csv", ".md", ".txt", ".json", ".icc", ".dump", ".nrrd")
    for path in root.rglob("*"):
        if path.is_file() and not path.name.endswith(no_dicom) and path.name != "README":
            above = [path.relative_to(root), *path.relative_to(root).parents]
            assert any(step.as_posix() in rows for step in above[:-1]), path


@pytest.mark.parametrize("name", ["", "-bigEnd", "-implicit", "-nooffset", "-nopatient"])
def test_dicomdirs_list_what_the_folder_holds(
    name: str, shared_data: Callable[[str], Path]
) -> None:
    folder = shared_data("dicom_awkward") / "pydicom_test_files" / "dicomdirtests"
    listed = find_series(folder / f"DICOMDIR{name}")
    found = [info for info in find_series(folder) if info.slices]
    assert [(i.uid, i.slices, i.reasons_against) for i in listed] == [
        (i.uid, i.slices, i.reasons_against) for i in found
    ]
