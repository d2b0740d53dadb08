"""NRRD, MetaImage and SimpleITK images against SimpleITK's own geometry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from medseg.core.errors import FileError, OutputError
from medseg.core.geometry import ALL_ORIENTATIONS, Geometry
from medseg.core.labels import LabelSet
from medseg.core.results import Prediction
from medseg.io.formats import read_mask, read_scan, write_mask
from medseg.io.itk import scan_from_sitk, to_sitk
from tests.phantoms import lopsided_geometry, lopsided_volume

SHAPE = (11, 8, 6)
LABELS = LabelSet.from_names({1: "liver", 2: "spleen"})


def _image(voxels: np.ndarray, geometry: Geometry) -> Any:
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    origin, spacing, direction = geometry.to_lps()
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    return image


def _places(image: Any, geometry: Geometry) -> None:
    for index in ((0, 0, 0), (2, 1, 4), tuple(n - 1 for n in geometry.shape)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        assert np.allclose((geometry.affine_ras @ [*index, 1])[:3], [-x, -y, z], atol=1e-5)


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_voxels_and_places_agree_with_simpleitk(tmp_path: Path, suffix: str) -> None:
    voxels, affine = lopsided_volume(SHAPE, oblique=True)
    for turn in ALL_ORIENTATIONS[::7]:
        geometry = Geometry(SHAPE, affine).reoriented(turn)
        image = _image(turn.apply(voxels), geometry)
        path = tmp_path / f"a{suffix}"
        sitk.WriteImage(image, str(path))
        scan = read_scan(path)
        _places(image, scan.geometry)
        assert scan.voxels().dtype == np.int16
        assert np.array_equal(scan.voxels()[0], turn.apply(voxels))
        for index in ((0, 0, 0), (3, 2, 1)):
            assert image[index] == scan.voxels()[0][index]


def test_itk_and_nifti_tell_the_same_place(tmp_path: Path) -> None:
    voxels, affine = lopsided_volume(SHAPE, oblique=True)
    image = _image(voxels, Geometry(SHAPE, affine))
    scans = []
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
        scans.append(read_scan(tmp_path / f"a{suffix}"))
    for scan in scans[1:]:
        assert scans[0].geometry.difference(scan.geometry) is None
        assert np.array_equal(scans[0].voxels(), scan.voxels())


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_vectors_and_a_fourth_dimension_become_channels(tmp_path: Path, suffix: str) -> None:
    voxels, affine = lopsided_volume(SHAPE, oblique=True)
    parts = [_image(voxels + n, Geometry(SHAPE, affine)) for n in range(3)]
    path = tmp_path / f"a{suffix}"
    for joined in (sitk.Compose(parts), sitk.JoinSeries(parts)):
        sitk.WriteImage(joined, str(path))
        scan = read_scan(path)
        assert scan.channels == ("0", "1", "2")
        assert scan.geometry.difference(Geometry(SHAPE, affine)) is None
        assert np.array_equal(scan.voxels(), np.stack([voxels, voxels + 1, voxels + 2]))


def test_2d_files_and_2d_vectors(tmp_path: Path) -> None:
    pixels = np.arange(35, dtype=np.uint16).reshape(5, 7)
    image = sitk.GetImageFromArray(pixels)
    image.SetSpacing((0.5, 2.0))
    image.SetOrigin((3.0, -4.0))
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    scan = read_scan(tmp_path / "a.mha")
    assert scan.geometry.shape == (7, 5, 1)
    assert scan.geometry.spacing_mm == (0.5, 2.0, 1.0)
    assert scan.voxels()[0, 6, 2, 0] == image[6, 2]
    double = scan_from_sitk(sitk.Compose([image, image + 100]))
    assert double.voxels()[1, 6, 2, 0] == image[6, 2] + 100


def test_scan_from_sitk_and_back_to_it() -> None:
    voxels, affine = lopsided_volume(SHAPE, oblique=True)
    image = _image(voxels, Geometry(SHAPE, affine))
    scan = scan_from_sitk(image)
    mask = (voxels % 3).astype(np.uint8)
    back = to_sitk(Prediction(mask, scan.geometry, LABELS))
    assert back.GetSize() == image.GetSize()
    assert np.allclose(back.GetOrigin(), image.GetOrigin())
    assert np.allclose(back.GetDirection(), image.GetDirection())
    assert np.allclose(back.GetSpacing(), image.GetSpacing())
    assert back[5, 3, 2] == mask[5, 3, 2]


def test_the_mask_of_a_sheared_scan_keeps_its_direction() -> None:
    affine = lopsided_geometry(SHAPE).affine_ras.copy()
    affine[:3, 2] += 0.2 * affine[:3, 1]
    geometry = Geometry(SHAPE, affine)
    image = to_sitk(Prediction(np.zeros(SHAPE, np.uint8), geometry, LABELS))
    _places(image, geometry)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_masks_are_written_and_read_again(tmp_path: Path, suffix: str) -> None:
    voxels, affine = lopsided_volume(SHAPE, oblique=True)
    mask = (voxels % 3).astype(np.uint8)
    path = tmp_path / "deep" / f"mask{suffix}"
    write_mask(path, Prediction(mask, Geometry(SHAPE, affine), LABELS))
    values, scan = read_mask(path)
    assert np.array_equal(values, mask)
    assert scan.geometry.difference(Geometry(SHAPE, affine)) is None
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_mask_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("itk::ERROR: writer(0x1): no space")

    monkeypatch.setattr(sitk, "WriteImage", full)
    geometry = lopsided_geometry(SHAPE)
    with pytest.raises(OutputError, match="no space"):
        write_mask(tmp_path / "a.nrrd", Prediction(np.zeros(SHAPE, np.uint8), geometry, LABELS))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_file_is_one_error(
    tmp_path: Path, suffix: str, packed: bool, keep: float
) -> None:
    voxels, affine = lopsided_volume((31, 28, 26))
    path = tmp_path / f"a{suffix}"
    image = _image(voxels, Geometry((31, 28, 26), affine))
    sitk.WriteImage(image, str(path), useCompression=packed)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(FileError, match=rf"a\{suffix}") as caught:
        read_scan(path).voxels()
    assert "0x" not in str(caught.value)


def test_missing_voxel_file_and_a_false_promise(tmp_path: Path) -> None:
    voxels, affine = lopsided_volume(SHAPE)
    sitk.WriteImage(_image(voxels, Geometry(SHAPE, affine)), str(tmp_path / "a.mhd"))
    (tmp_path / "a.raw").unlink()
    with pytest.raises(FileError):
        read_scan(tmp_path / "a.mhd").voxels()
    sitk.WriteImage(_image(voxels, Geometry(SHAPE, affine)), str(tmp_path / "b.mha"))
    content = (tmp_path / "b.mha").read_bytes()
    content = content.replace(b"DimSize = 11 8 6", b"DimSize = 9000 9000 900")
    (tmp_path / "b.mha").write_bytes(content)
    with pytest.raises(FileError, match="bytes"):
        read_scan(tmp_path / "b.mha")


def test_complex_voxels_are_refused() -> None:
    image = sitk.Image([4, 3, 2], sitk.sitkComplexFloat32)
    with pytest.raises(FileError, match="complex"):
        scan_from_sitk(image).voxels()


def test_real_metaimages(shared_data: Callable[[str], Path]) -> None:
    for path in sorted((shared_data("nifti_awkward") / "itksnap").glob("*.mha")):
        image, scan = sitk.ReadImage(str(path)), read_scan(path)
        last = tuple(n - 1 for n in image.GetSize())
        point = [*image.TransformIndexToPhysicalPoint(last), 0.0][:3]
        full = (*last, 0)[:3]
        place = (scan.geometry.affine_ras @ [*full, 1])[:3]
        assert np.allclose(place, [-point[0], -point[1], point[2]], atol=1e-4)
        assert np.array_equal(scan.voxels()[0][full], image[last], equal_nan=True)
