"""``--grid source``: one plane per original slice, each where its file says."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

import medseg
from medseg.io.formats import read_scan
from tests.dicom_phantoms import Series
from tests.workflows.test_tilt import ORGANS, SIZE, SPACING, check_centroids, model, tilted

# Two slices are missing, and one lies off the grid.
UNEVEN = [0, 1, 2, 3, 5, 6, 7, 8.4, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19]
LPS = np.array([-1.0, -1.0, 1.0])


def uneven(degrees: float) -> tuple[Series, dict[int, NDArray[np.float64]], dict[int, float]]:
    """A tilted series with uneven gaps; centroid in RAS mm and volume in ml of each organ."""
    series, affine, _ = tilted(degrees)
    grid = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), axis=-1)[:, :, : len(UNEVEN)]
    grid = grid.astype(float)
    grid[..., 2] = UNEVEN
    places = grid @ affine[:3, :3].T + affine[:3, 3]
    voxels, centroids, volumes_ml = np.zeros(grid.shape[:3], np.int16), {}, {}
    for value, (centre, radii, level) in ORGANS.items():
        middle = affine[:3, :3] @ np.array(centre) + affine[:3, 3]
        voxels[np.linalg.norm((places - middle) / radii, axis=-1) < 1] = level
        centroids[value] = middle
        volumes_ml[value] = 4 / 3 * np.pi * np.prod(radii) / 1000
    series.voxels, series.places = voxels, UNEVEN
    return series, centroids, volumes_ml


def planes_of(study: Path) -> dict[tuple[float, ...], NDArray[np.int16]]:
    """Pixels (I, J) of each file by its ImagePositionPatient."""
    files = [pydicom.dcmread(path) for path in study.iterdir()]
    return {
        tuple(round(float(v), 4) for v in ds.ImagePositionPatient): ds.pixel_array.T for ds in files
    }


@pytest.mark.parametrize("degrees", [0.0, -18.5, 12.5])
def test_uneven_slices_get_a_plane_each(degrees: float, tmp_path: Path) -> None:
    series, centroids, volumes_ml = uneven(degrees)
    study = series.write(tmp_path / "study")
    done = medseg.predict(
        model(), study, tmp_path / "out", grid="source", accept_gaps=True, save_scan=True
    )["done"]
    mask = nib.load(done["study"])
    labels = np.asarray(mask.dataobj)
    assert labels.shape == (*SIZE[:2], len(UNEVEN))
    text = (tmp_path / "out" / "study.json").read_text()
    assert not any(word in text for word in ("Secret", "77123", series.uid))
    slices = json.loads(text)["slices"]
    assert not slices["even"]
    assert "uneven" in slices["note"]
    # Each plane is where its file has it, and shows what its file shows.
    files = planes_of(study)
    right, wrong, found = 0, 0, {value: [] for value in ORGANS}
    rows, columns = series.axes[:, 0] * SPACING[0], series.axes[:, 1] * SPACING[1]
    for plane in slices["planes"]:
        position = tuple(plane["image_position_patient_mm"])
        pixels = files.pop(position)
        shown = labels[:, :, plane["index"]]
        for value, (_, _, level) in ORGANS.items():
            right += int((shown[pixels == level] == value).sum())
            wrong += int((shown[pixels == level] != value).sum())
            i, j = np.nonzero(shown == value)
            weight = thickness(UNEVEN)[plane["index"]]
            corner = np.array(position) + i[:, None] * rows + j[:, None] * columns
            found[value].append((corner * LPS, np.full(len(corner), weight)))
    assert not files
    assert wrong < 0.1 * right
    for value, parts in found.items():
        places, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
        centroid = np.average(places, axis=0, weights=weights)
        assert np.abs((centroid - centroids[value]) / SPACING).max() < 0.5
        voxel_ml = np.prod(SPACING) * np.cos(np.radians(degrees)) / 1000
        stated = json.loads(text)["volumes_ml"][model().labels.names[value - 1]]
        assert stated == pytest.approx(weights.sum() * voxel_ml, rel=1e-3)
        # The brighter organ loses its rim, where it fades through the other's HU.
        assert stated == pytest.approx(volumes_ml[value], rel=0.1 if value == 1 else 0.2)
    scan = nib.load(tmp_path / "out" / "study_scan.nii.gz")
    assert scan.shape == mask.shape
    np.testing.assert_allclose(scan.affine, mask.affine, atol=1e-5)
    order = np.argsort(UNEVEN)
    np.testing.assert_array_equal(np.asarray(scan.dataobj), series.voxels[:, :, order])


def thickness(places: list[float]) -> NDArray[np.float64]:
    """Half the way to both neighbours; the outermost as far outwards as inwards."""
    padded = np.array([2 * places[0] - places[1], *places, 2 * places[-1] - places[-2]])
    return (padded[2:] - padded[:-2]) / 2


def test_the_header_has_the_nearest_even_grid(tmp_path: Path) -> None:
    series, _, _ = uneven(18.5)
    done = medseg.predict(
        model(), series.write(tmp_path / "study"), tmp_path / "out", grid="source", accept_gaps=True
    )["done"]
    affine = nib.load(done["study"]).affine
    truth = np.array([series.position(k) for k in range(len(UNEVEN))]) * LPS
    # A straight line through the slices, by another way than polyfit.
    design = np.column_stack([np.ones(len(UNEVEN)), np.arange(len(UNEVEN))])
    line, *_ = np.linalg.lstsq(design, truth, rcond=None)
    np.testing.assert_allclose(affine[:3, 3], line[0], atol=1e-3)
    np.testing.assert_allclose(affine[:3, 2], line[1], atol=1e-4)
    stray = np.abs((design @ line - truth) @ (series.axes[:, 2] * LPS)).max()
    stated = json.loads((tmp_path / "out" / "study.json").read_text())["slices"]["header_error_mm"]
    assert stated == pytest.approx(stray, abs=1e-3)


def test_of_even_slices_it_is_their_own_grid(tmp_path: Path) -> None:
    series, affine, centroids = tilted(12.5)
    study = series.write(tmp_path / "study")
    own = model().predict(read_scan(study), grid="own")
    source = model().predict(read_scan(study), grid="source")
    np.testing.assert_array_equal(source.labels, own.labels)
    np.testing.assert_allclose(source.affine, affine, atol=1e-4)
    assert source.volumes_ml() == own.volumes_ml()
    path = source.save(tmp_path / "mask.nii.gz")
    check_centroids(nib.load(path), centroids)
    planes = json.loads((tmp_path / "mask.json").read_text())["slices"]
    assert planes["even"]
    assert planes["header_error_mm"] == 0
    expected = [series.position(k) for k in range(SIZE[2])]
    stated = [plane["image_position_patient_mm"] for plane in planes["planes"]]
    np.testing.assert_allclose(stated, expected, atol=1e-3)


def test_what_is_no_dicom_keeps_its_grid() -> None:
    voxels, affine = np.zeros((20, 18, 12), np.float32), np.diag([-1.2, 1.5, 3.0, 1.0])
    result = model().predict((voxels, affine), grid="source")
    assert result.labels.shape == voxels.shape
    assert result.prediction.slices is None
