"""Segmentations: against the masks that went in, dcmqi's own masks, and damaged copies."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from medseg.core.errors import FileError, GeometryError, InputError, LabelError, MedsegError
from medseg.core.labels import LabelSet
from medseg.core.scan import Scan
from medseg.io.dicom_labels import colour_of_cielab
from medseg.io.dicom_seg import read_dicom_seg
from medseg.io.formats import read_label_names, read_mask, read_scan
from tests.dicom_objects import SegFile
from tests.dicom_phantoms import Series, random_voxels

SHAPE = (13, 9, 6)  # 117 pixels a frame: no frame but the first begins on a byte


def masks(seed: int = 0, *, empty: tuple[int, ...] = (0, 3)) -> dict[int, NDArray[np.bool_]]:
    """Two segments that share no voxel; slices ``empty`` have none of segment 2."""
    values = np.random.default_rng(seed).integers(0, 4, SHAPE)
    found = {2: values == 2, 5: values == 3}
    found[2][:, :, list(empty)] = False
    return found


def label_image(found: dict[int, NDArray[np.bool_]]) -> NDArray[np.uint8]:
    made = np.zeros(SHAPE, dtype=np.uint8)
    for number, mask in found.items():
        made[mask] = number
    return made


def study(folder: Path, **options: object) -> tuple[Series, SegFile]:
    series = Series(random_voxels(SHAPE))
    series.write(folder / "ct")
    return series, SegFile(series, masks(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "deflated"])
def test_frames_land_where_their_positions_say(tmp_path: Path, syntax: str) -> None:
    series, seg = study(tmp_path)
    seg.write(tmp_path / "seg.dcm", syntax=syntax)
    for path in (tmp_path, tmp_path / "seg.dcm"):
        values, scan = read_mask(path)
        np.testing.assert_array_equal(values, label_image(seg.masks))
        np.testing.assert_allclose(scan.geometry.affine_ras, series.affine_ras(), atol=1e-4)
        assert values.dtype == np.uint8


def test_a_zip_and_an_enhanced_source(tmp_path: Path) -> None:
    series = Series(random_voxels(SHAPE))
    series.write_enhanced(tmp_path / "in" / "ct.dcm")
    seg = SegFile(series, masks())
    seg.write(tmp_path / "in" / "s.dcm")
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (tmp_path / "in").iterdir():
            archive.write(path, path.name)
    np.testing.assert_array_equal(read_mask(tmp_path / "study.zip")[0], label_image(seg.masks))


def test_its_own_grid_without_a_source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    series = Series(random_voxels(SHAPE))
    only = {1: masks(empty=(0, 2, 3))[2]}  # slices 1, 4 and 5 have frames
    path = SegFile(series, only, between_mm=2.5).write(tmp_path / "seg.dcm")
    with caplog.at_level(logging.WARNING):
        values, scan = read_mask(path)
    assert "its own grid" in caplog.text
    np.testing.assert_array_equal(values, only[1][:, :, 1:])
    moved = series.affine_ras() @ np.array([0, 0, 1, 1])
    np.testing.assert_allclose(scan.geometry.affine_ras[:, 3], moved, atol=1e-4)
    np.testing.assert_allclose(scan.geometry.spacing_mm, series.spacing_mm, atol=1e-4)


def test_fractional_and_label_map(tmp_path: Path) -> None:
    shares = np.random.default_rng(4).integers(0, 201, SHAPE)
    series, _ = study(tmp_path)
    path = tmp_path / "ct" / "seg.dcm"
    SegFile(series, {3: shares}, kind="FRACTIONAL", sparse=False).write(path)
    np.testing.assert_array_equal(read_mask(path)[0], np.where(shares >= 100, 3, 0))
    whole = label_image(masks())
    both = SegFile(series, {5: whole, 2: np.zeros(SHAPE)}, kind="LABELMAP")
    both.write(path)
    np.testing.assert_array_equal(read_mask(path)[0], whole)
    SegFile(series, {5: whole}, kind="LABELMAP").write(path)
    with pytest.raises(LabelError, match="values of the segments"):
        read_mask(path)


def test_a_compressed_label_map(tmp_path: Path) -> None:
    series, _ = study(tmp_path)
    whole = label_image(masks())
    ds = SegFile(series, {5: whole, 2: np.zeros(SHAPE)}, kind="LABELMAP").dataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.compress(RLELossless, encoding_plugin="pydicom")
    ds.save_as(tmp_path / "ct" / "seg.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_mask(tmp_path / "ct")[0], whole)


def test_where_segments_overlap_the_later_one_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    series, _ = study(tmp_path)
    first, second = np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=bool)
    first[2:8, 1:5, 1:3] = True
    second[6:11, 3:9, 2:5] = True
    path = SegFile(series, {1: first, 2: second}).write(tmp_path / "seg.dcm")
    with caplog.at_level(logging.WARNING):
        values, _ = read_mask(path)
    np.testing.assert_array_equal(values, np.where(second, 2, np.where(first, 1, 0)))
    assert f"{np.count_nonzero(first & second)} voxels belong to the later one" in caplog.text


def test_names_colours_and_structures_by_name(tmp_path: Path) -> None:
    series, _ = study(tmp_path)
    found = masks()
    path = SegFile(series, found, {2: "Liver", 5: "Kidney, left"}).write(tmp_path / "s.dcm")
    labels = read_label_names(path)
    assert labels is not None
    assert (labels.values, labels.names) == ((2, 5), ("Liver", "Kidney, left"))
    red, green, blue = labels.labels[0].colour
    assert red >= 254
    assert max(green, blue) <= 8
    wanted = LabelSet.from_names({1: "kidney, LEFT", 2: "spleen"})
    np.testing.assert_array_equal(read_mask(path, labels=wanted)[0], found[5])


def test_colours_as_the_standard_encodes_them() -> None:
    # White, black, and the grey of sRGB 119 (L 50), with a and b of 0.
    neutral = round(128 / 255 * 65535)
    assert colour_of_cielab((65535, neutral, neutral)) == (255, 255, 255)
    assert colour_of_cielab((0, neutral, neutral)) == (0, 0, 0)
    assert colour_of_cielab((32768, neutral, neutral)) == (119, 119, 119)
    assert colour_of_cielab(()) is None


def test_without_a_reference_the_grid_that_fits(tmp_path: Path) -> None:
    series, seg = study(tmp_path, refer=False)
    other = Series(random_voxels(SHAPE), origin_mm=(3.0, 4.0, 5.0), uid=f"{series.uid}.9", number=7)
    other.write(tmp_path / "another")
    seg.write(tmp_path / "seg.dcm")
    values, scan = read_mask(tmp_path)
    np.testing.assert_array_equal(values, label_image(seg.masks))
    np.testing.assert_allclose(scan.geometry.affine_ras, series.affine_ras(), atol=1e-4)


def test_a_scan_turned_by_a_converter(tmp_path: Path) -> None:
    _, seg = study(tmp_path)
    path = seg.write(tmp_path / "alone" / "seg.dcm")
    scan = read_scan(tmp_path / "ct")
    for turn in (scan.geometry.orientation_to_ras(), scan.geometry.orientation_to_ras().inverse()):
        turned = Scan(scan.geometry.reoriented(turn), ("0",), scan.load)
        made = read_dicom_seg(path, source=turned)
        np.testing.assert_array_equal(made.labels, turn.apply(label_image(seg.masks)))


def test_faults_are_told(tmp_path: Path) -> None:
    series, seg = study(tmp_path)
    path = seg.write(tmp_path / "a" / "seg.dcm")
    shifted = Series(series.voxels, origin_mm=(-81.3, 33.5, 212.25)).write(tmp_path / "b")
    with pytest.raises(GeometryError, match="beside it"):
        read_mask(path, image=shifted)
    short = Series(series.voxels[:, :, :3]).write(tmp_path / "c")
    with pytest.raises(GeometryError, match="outside"):
        read_mask(path, image=short)
    with pytest.raises(FileError, match="another object"):
        read_dicom_seg(next((tmp_path / "ct").iterdir()))
    seg.write(tmp_path / "a" / "second.dcm")
    with pytest.raises(InputError, match="second"):
        read_mask(tmp_path / "a")
    dataset = seg.dataset()
    dataset.PerFrameFunctionalGroupsSequence[3].SegmentIdentificationSequence[
        0
    ].ReferencedSegmentNumber = 9
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.save_as(path)
    with pytest.raises(FileError, match="segment 9"):
        read_mask(path)
    raw = seg.write(tmp_path / "a" / "seg.dcm").read_bytes()
    path.write_bytes(raw[:-20])
    with pytest.raises(FileError):
        read_mask(path)


def test_no_word_of_the_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, seg = study(tmp_path)
    path = seg.write(tmp_path / "x" / "seg.dcm")
    with caplog.at_level(logging.DEBUG):
        _, scan = read_mask(path)
    for secret in ("Doe", "Secret", "77123", "1960"):
        assert secret not in caplog.text + repr(scan) + repr(read_label_names(path))


def nrrd(path: Path) -> NDArray[np.int16]:
    image = sitk.ReadImage(str(path))
    values: NDArray[np.int16] = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    return values


def test_against_dcmqi(shared_data: Callable[[str], Path]) -> None:
    home = shared_data("dicom_awkward") / "seg_dcmqi"
    for name in ("23x38x3", "24x38x3"):
        truth = nrrd(home / name / "nrrd" / "label.nrrd")
        for image in ("image", "multiframe"):
            found, _ = read_mask(home / name / "seg" / "label.seg", image=home / name / image)
            np.testing.assert_array_equal(found, truth)
    found, scan = read_mask(home / "liver.dcm")
    np.testing.assert_array_equal(found, nrrd(home / "liver_seg.nrrd"))
    assert scan.geometry.shape == (512, 512, 3)
    parts = [nrrd(home / f"partial_overlaps-{number}.nrrd") for number in (1, 2, 3)]
    found, _ = read_mask(home / "partial_overlaps.dcm")
    # Its files take the segments apart where they overlap; the highest number is the later.
    np.testing.assert_array_equal(found, np.max(parts, axis=0))


@pytest.mark.parametrize("name", ["noppv", "ppv5"])
def test_sparse_label_maps_of_dcmqi(shared_data: Callable[[str], Path], name: str) -> None:
    home = shared_data("dicom_awkward") / "seg_dcmqi"
    truth = nrrd(home / f"sparse_labelmap_{name}_seg.nrrd")
    path = home / f"sparse-labelmap-{name}.dcm"
    for image in (None, home / "24x38x3" / "image"):
        found, _ = read_mask(path, image=image)
        # dcmqi fills absent slices with the padding value 5; it is no structure.
        np.testing.assert_array_equal(found, np.where(truth == 5, 0, truth))


def test_fractional_without_a_reference(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("dicom_awkward") / "mr_breast_sagittal_fractional_seg.zip"
    found, scan = read_mask(path)
    assert scan.geometry.shape == (256, 256, 60)
    # 82,527 bytes of 255 in the file, on 42 slices.
    assert np.count_nonzero(found) == 82_527
    assert scan.geometry.axis_codes == "PIR"
    # Its centre in the patient, from the frames' own positions.
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("seg/1-1.dcm"))
        ds = dcmread(io.BytesIO(archive.read(name)))
    frames, places = ds.pixel_array, []
    for frame, group in zip(frames, ds.PerFrameFunctionalGroupsSequence, strict=True):
        start = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        rows, columns = np.nonzero(frame)
        # Rows of the picture run along y, its columns down -z; 0.703125 mm a pixel.
        off = np.column_stack([0 * columns, 0.703125 * columns, -0.703125 * rows])
        places.append(start + off)
    centre_lps = np.concatenate(places).mean(axis=0)
    cells = np.argwhere(found)
    centre_ras = (
        cells @ scan.geometry.affine_ras[:3, :3].T + scan.geometry.affine_ras[:3, 3]
    ).mean(axis=0)
    np.testing.assert_allclose(centre_ras, centre_lps * [-1, -1, 1], atol=0.02)
    labels = read_label_names(path)
    assert labels is not None
    assert labels.names == ("Breast",)


def damaged(raw: bytes, chance: np.random.Generator) -> bytes:
    data = bytearray(raw)
    for _ in range(int(chance.choice([1, 3, 10]))):
        at = int(chance.integers(0, len(data)))
        kind = int(chance.integers(0, 3))
        if kind == 0:
            data[at : at + 4] = chance.bytes(4)
        elif kind == 1:
            data[at : at + 4] = b"\xff\xff\xff\x7f"
        else:
            del data[at : at + int(chance.integers(1, 200))]
    return bytes(data)


@pytest.mark.filterwarnings("ignore")  # pydicom tells of what it mends
def test_damaged_files_end_in_a_mask_or_an_error_of_ours(tmp_path: Path) -> None:
    _, seg = study(tmp_path)
    path = seg.write(tmp_path / "ct" / "seg.dcm")
    raw, chance, read = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(100):
        path.write_bytes(damaged(raw, chance))
        try:
            values, _ = read_mask(path, image=tmp_path / "ct")
        except MedsegError:
            continue
        assert values.dtype.kind in "iu"
        read += 1
    assert 0 < read < 100
