"""Structure sets: against matplotlib's point-in-polygon, areas by hand, and damaged copies."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray

from medseg.core.errors import FileError, GeometryError, InputError, LabelError, MedsegError
from medseg.core.labels import LabelSet
from medseg.core.scan import Scan
from medseg.io.formats import read_label_names, read_mask, read_scan
from medseg.io.rtstruct import fill, read_rtstruct
from tests.dicom_objects import Roi, closed, write_rtstruct
from tests.dicom_phantoms import Series, random_voxels, turned

SHAPE = (23, 17, 6)
Corners = list[tuple[float, float]]


def star(seed: int, *, centre: tuple[float, float] = (11.3, 8.2), size: float = 7.0) -> Corners:
    """A ragged outline that runs through no pixel's centre."""
    chance = np.random.default_rng(seed)
    angles = np.sort(chance.uniform(0, 2 * np.pi, 40))
    radii = size * chance.uniform(0.4, 1.0, 40)
    x, y = centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def inside(corners: Corners) -> NDArray[np.bool_]:
    """Pixels whose centre matplotlib finds inside."""
    i, j = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    points = np.column_stack([i.ravel(), j.ravel()])
    return Polygon(corners).contains_points(points).reshape(SHAPE[:2])


def series_of(folder: Path, **options: object) -> Series:
    series = Series(random_voxels(SHAPE), **options)  # type: ignore[arg-type]
    series.write(folder / "ct")
    return series


@pytest.mark.parametrize("tilt_mm", [0.0, 0.6])
def test_contours_fill_the_voxels_whose_centres_they_hold(tmp_path: Path, tilt_mm: float) -> None:
    axes = turned()
    series = series_of(tmp_path, step_mm=2.5 * axes[:, 2] + tilt_mm * axes[:, 1])
    truth = np.zeros(SHAPE, dtype=np.uint8)
    contours = []
    for k in (4, 1, 2):
        corners = star(k)
        contours.append(closed(corners, k))
        truth[:, :, k][inside(corners)] = 7
    path = write_rtstruct(series, {7: Roi("Liver", contours)}, tmp_path / "rt.dcm")
    values, scan = read_mask(path)
    np.testing.assert_array_equal(values, truth)
    np.testing.assert_allclose(scan.geometry.affine_ras, series.affine_ras(), atol=1e-4)
    np.testing.assert_array_equal(read_mask(tmp_path)[0], truth)


def test_holes_keyholes_and_islands(tmp_path: Path) -> None:
    series = series_of(tmp_path)
    outer = [(2.5, 2.5), (12.5, 2.5), (12.5, 12.5), (2.5, 12.5)]
    hole = [(5.5, 5.5), (5.5, 8.5), (9.5, 8.5), (9.5, 5.5)]
    island = [(15.5, 3.5), (18.5, 3.5), (18.5, 5.5), (15.5, 5.5)]
    # Out along a channel of no width to the hole, around it, and back.
    keyhole = [*outer, outer[0], *hole, hole[0], outer[0]]
    rois = {
        1: Roi("nested", [closed(outer, 1), closed(hole, 1), closed(island, 1)]),
        2: Roi("keyhole", [closed(keyhole, 3)]),
    }
    values, _ = read_mask(write_rtstruct(series, rois, tmp_path / "rt.dcm"))
    ring = np.zeros(SHAPE[:2], dtype=bool)
    ring[3:13, 3:13] = True
    ring[6:10, 6:9] = False
    np.testing.assert_array_equal(values[:, :, 3] == 2, ring)
    ring[16:19, 4:6] = True
    np.testing.assert_array_equal(values[:, :, 1] == 1, ring)
    assert np.count_nonzero(values) == (100 - 12 + 6) + (100 - 12)


def test_an_edge_through_centres_gives_each_pixel_to_one_side() -> None:
    left = np.array([(2.0, 1.0), (6.0, 1.0), (6.0, 5.0), (2.0, 5.0)])
    right = np.add(left, [4.0, 0.0])
    first, second = fill([left], (12, 8)), fill([right], (12, 8))
    assert not (first & second).any()
    assert first.sum() == second.sum() == 16  # 4 x 4 voxels, the area of the square
    assert first[2:6, 1:5].all()
    # Far outside and huge: cut at the border.
    assert fill([np.array([(-1e6, -1e6), (1e6, -1e6), (0.0, 1e6)])], (12, 8)).all()


def test_denser_than_slices_and_off_the_middle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    series = series_of(tmp_path)
    near, far = star(1), star(2, size=3.0)
    contours = [closed(far, 1.6), closed(near, 2.1), closed(far, 2.4)]
    path = write_rtstruct(series, {1: Roi("a", contours)}, tmp_path / "rt.dcm")
    with caplog.at_level(logging.WARNING):
        values, _ = read_mask(path)
    np.testing.assert_array_equal(values[:, :, 2] == 1, inside(near))
    assert np.count_nonzero(values) == inside(near).sum()
    assert "2 contours of 'a' lie between slices" in caplog.text


def test_points_and_lines_enclose_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    series = series_of(tmp_path)
    corners = star(5)
    rois = {
        3: Roi("marker", [("POINT", [(1.0, 1.0, 40.0)])]),
        4: Roi("organ", [closed(corners, 2), ("OPEN_PLANAR", closed(corners, 3)[1])]),
    }
    path = write_rtstruct(series, rois, tmp_path / "rt.dcm")
    with caplog.at_level(logging.WARNING):
        values, _ = read_mask(path)
    np.testing.assert_array_equal(values[:, :, 2] == 4, inside(corners))
    assert np.count_nonzero(values) == inside(corners).sum()
    assert "2 points and open contours" in caplog.text
    labels = read_label_names(path)
    assert labels is not None
    assert [(x.value, x.name, x.colour) for x in labels.labels] == [(4, "organ", (10, 200, 30))]


def test_overlap_and_structures_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    series = series_of(tmp_path)
    body = [(0.5, 0.5), (20.5, 0.5), (20.5, 15.5), (0.5, 15.5)]
    organ = star(8)
    rois = {1: Roi("Organ", [closed(organ, 2)]), 2: Roi("BODY", [closed(body, 2)])}
    path = write_rtstruct(series, rois, tmp_path / "rt.dcm")
    with caplog.at_level(logging.WARNING):
        values, _ = read_mask(path)
    assert np.count_nonzero(values == 2) == 20 * 15
    covered = np.count_nonzero(inside(organ) & inside(body))
    assert f"{covered} voxels belong to the later one" in caplog.text
    values, _ = read_mask(path, labels=LabelSet.from_names({6: "organ"}))
    np.testing.assert_array_equal(values[:, :, 2], np.where(inside(organ), 6, 0))


def test_a_scan_turned_by_a_converter(tmp_path: Path) -> None:
    series = series_of(tmp_path, axes=np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]))  # sagittal
    corners = star(3)
    path = write_rtstruct(series, {1: Roi("a", [closed(corners, 2)])}, tmp_path / "rt.dcm")
    scan = read_scan(tmp_path / "ct")
    turn = scan.geometry.orientation_to_ras()
    again = Scan(scan.geometry.reoriented(turn), ("0",), scan.load)
    truth = np.zeros(SHAPE, dtype=np.uint8)
    truth[:, :, 2][inside(corners)] = 1
    np.testing.assert_array_equal(read_rtstruct(path, source=again).labels, turn.apply(truth))


def test_faults_are_told(tmp_path: Path) -> None:
    series = series_of(tmp_path)
    roi = {1: Roi("Liver", [closed(star(1), 2)])}
    good = write_rtstruct(series, roi, tmp_path / "rt.dcm")
    short = Series(series.voxels[:, :, :2]).write(tmp_path / "far" / "short")
    with pytest.raises(GeometryError, match=r"2\.5 mm from the nearest slice"):
        read_mask(good, image=short)
    tilted = [("CLOSED_PLANAR", [(2.0, 2.0, 1.0), (9.0, 2.0, 1.0), (9.0, 9.0, 3.0)])]
    with pytest.raises(GeometryError, match="'Liver'"):
        read_mask(write_rtstruct(series, {1: Roi("Liver", tilted)}, tmp_path / "t.dcm"))
    alone = write_rtstruct(series, roi, tmp_path / "alone" / "rt.dcm")
    with pytest.raises(FileError, match="no such series"):
        read_mask(alone)
    nowhere = write_rtstruct(series, roi, tmp_path / "t.dcm", refer=None)
    with pytest.raises(FileError, match="no reference"):
        read_mask(nowhere)
    # The user names the image: the reference counts for nothing then.
    other = write_rtstruct(series, roi, tmp_path / "alone" / "rt.dcm", refer="1.2.3")
    np.testing.assert_array_equal(read_mask(other, image=tmp_path / "ct")[0], read_mask(good)[0])
    empty = write_rtstruct(series, {1: Roi("x", [("POINT", [(1, 1, 1)])])}, tmp_path / "t.dcm")
    with pytest.raises(LabelError, match="outline"):
        read_mask(empty)
    with pytest.raises(InputError, match="Name the file"):
        read_mask(tmp_path)


def test_against_hand_computed_squares(shared_data: Callable[[str], Path]) -> None:
    home = shared_data("dicom_awkward") / "rtstruct_rt_utils"
    values, scan = read_mask(home / "mock_data" / "rt.dcm")
    # Corners at -51 and -27 mm, pixels of 0.488281 mm from -125 mm: indices 151.55 to 200.71,
    # 49 pixels a side, without what the second contour takes out of it.
    assert scan.geometry.shape == (512, 512, 2)
    assert values[152:201, 152:201, 0].sum() == np.count_nonzero(values)
    assert not values[:, :, 1].any()
    for name, error in (
        ("mock_data/invalid_reference_rt.dcm", GeometryError),
        ("mock_data/non_existent_reference_rt.dcm", FileError),
        ("empty/dummy_rt.dcm", FileError),
    ):
        with pytest.raises(error):
            read_mask(home / name)
    labels = read_label_names(home / "empty" / "dummy_rt.dcm")
    assert labels is not None
    assert labels.names == ("ROI-1", "ROI-2", "ROI-3", "ROI-4")


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
            del data[at : at + int(chance.integers(1, 60))]
    return bytes(data)


@pytest.mark.filterwarnings("ignore")  # pydicom tells of what it mends
def test_damaged_files_end_in_a_mask_or_an_error_of_ours(tmp_path: Path) -> None:
    series = series_of(tmp_path)
    contours = [closed(star(k), k) for k in range(6)]
    path = write_rtstruct(
        series, {1: Roi("a", contours), 2: Roi("b", contours)}, tmp_path / "r.dcm"
    )
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
