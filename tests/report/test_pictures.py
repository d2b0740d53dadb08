"""Pictures: which side is which, and what stands where; checked on pixels."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medseg.core.errors import GeometryError
from medseg.core.geometry import ALL_ORIENTATIONS, Geometry
from medseg.core.labels import LabelSet
from medseg.report.painting import PLANES, windowed
from medseg.report.pictures import CasePicture, best_cuts, case_montage, overlay_planes
from tests.phantoms import blobs, lopsided_geometry, oblique_affine

LABELS = LabelSet.from_names({1: "low", 2: "high"})
SHAPE = (24, 20, 16)


def _pixels(png: bytes) -> NDArray[np.int64]:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(np.int64)


def _where(pixels: NDArray[np.int64], label: int) -> tuple[float, float]:
    """Mean row and column, as shares of the sheet, of what is painted in a label's colour."""
    tint = pixels - pixels.mean(axis=2, keepdims=True)
    colour = np.array(LABELS.labels[label - 1].colour, dtype=float)
    colour -= colour.mean()
    near = (tint @ colour) / (np.linalg.norm(colour) ** 2) > 0.5
    rows, columns = np.nonzero(near)
    return float(rows.mean() / len(pixels)), float(columns.mean() / pixels.shape[1])


def test_patient_right_is_on_the_left_and_anterior_above() -> None:
    volume = np.zeros((5, 6, 7), dtype=np.uint8)  # RAS+: i to the Right, j to the Anterior
    volume[4, 5, 6] = 1
    axial, coronal, sagittal = PLANES
    for plane, index in ((axial, 6), (coronal, 5), (sagittal, 4)):
        cut = plane.cut(volume, index)
        assert cut.argmax() == 0, plane.name  # right (or anterior) and above: the first pixel
    assert axial.cut(volume, 0).shape == (6, 5)
    assert sagittal.cut(volume, 0).shape == (7, 6)
    assert axial.letters[:2] == coronal.letters[:2] == ("R", "L")
    assert sagittal.letters == ("A", "P", "S", "I")


def test_labels_stand_where_they_lie() -> None:
    # Label 1 lies at low i, which is the patient's left in RAS+, so right in the picture.
    _, mask = blobs(SHAPE)
    geometry = Geometry(SHAPE, np.diag([2.0, 2.0, 2.0, 1.0]))
    # Without a scan, one column: axial, coronal, sagittal and a legend below.
    pixels = _pixels(overlay_planes(None, {"prediction": mask}, geometry=geometry, labels=LABELS))
    axial = pixels[: len(pixels) // 3]
    assert _where(axial, 1)[1] > _where(axial, 2)[1] + 0.1


def test_all_orientations_give_the_same_picture() -> None:
    image, mask = blobs(SHAPE)
    geometry = lopsided_geometry(SHAPE, oblique=True)
    expected = None
    for turn in (ALL_ORIENTATIONS[0], ALL_ORIENTATIONS[13], ALL_ORIENTATIONS[46]):
        png = overlay_planes(
            turn.apply(image), {"truth": turn.apply(mask), "prediction": turn.apply(mask)},
            geometry=geometry.reoriented(turn), labels=LABELS, title="a case",
        )  # fmt: skip
        pixels = _pixels(png)
        expected = pixels if expected is None else expected
        np.testing.assert_array_equal(pixels, expected)


def test_a_wide_voxel_is_drawn_wide() -> None:
    mask = np.ones((10, 10, 10), dtype=np.uint8)
    tall, flat = (
        _pixels(
            overlay_planes(
                None, {"truth": mask}, geometry=Geometry((10, 10, 10), np.diag([*sizes, 1.0])),
                labels=LABELS,
            )
        ).shape
        for sizes in ((1.0, 1.0, 4.0), (4.0, 4.0, 1.0))
    )  # fmt: skip
    assert tall[0] / tall[1] > 2 * flat[0] / flat[1]


def test_threads_draw_the_same_bytes() -> None:
    image, mask = blobs(SHAPE)
    cases = [
        CasePicture("one", lopsided_geometry(SHAPE), {"truth": mask, "prediction": mask}, image),
        CasePicture("two", lopsided_geometry(SHAPE), {"truth": mask, "prediction": mask}),
        CasePicture("three", lopsided_geometry(SHAPE), {"prediction": mask}, image, "CT"),
    ]
    with ThreadPoolExecutor(2) as pool:
        drawn = list(pool.map(lambda _: case_montage(cases, LABELS, title="all"), range(3)))
    assert drawn[0] == drawn[1] == drawn[2]


def test_flat_images() -> None:
    image, mask = blobs((30, 20, 1))
    geometry = Geometry((30, 20, 1), np.diag([-1.0, -1.0, 1.0, 1.0]))
    pixels = _pixels(overlay_planes(image, {"truth": mask}, geometry=geometry, labels=LABELS))
    # One row: much wider than high. Columns run as stored: label 1, at low i, is on the left.
    assert pixels.shape[1] > 1.5 * pixels.shape[0]
    assert _where(pixels[:, :], 1)[1] < _where(pixels[:, :], 2)[1]
    colours = np.random.default_rng(0).integers(0, 255, (3, 30, 20, 1)).astype(np.uint8)
    assert overlay_planes(colours, {"truth": mask}, geometry=geometry, labels=LABELS)
    # A coronal slice of a volume: flat along another axis.
    affine = oblique_affine(angles_deg=(0.0, 0.0, 0.0))
    _, slab = blobs((30, 1, 20))
    assert overlay_planes(
        None, {"truth": slab}, geometry=Geometry((30, 1, 20), affine), labels=LABELS
    )


@pytest.mark.parametrize("value", [0, 1, 9])
def test_empty_full_and_unknown_labels(value: int) -> None:
    mask = np.full(SHAPE, value, dtype=np.uint16)
    image = np.full(SHAPE, np.nan, dtype=np.float32)
    assert overlay_planes(
        image, {"truth": mask, "prediction": np.zeros_like(mask)},
        geometry=lopsided_geometry(SHAPE), labels=LABELS, title="$x_1",
    )  # fmt: skip


def test_many_labels_and_long_names() -> None:
    mask = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 40
    labels = LabelSet.from_names({v: f"structure number {v} of 40 $" for v in range(1, 40)})
    assert overlay_planes(None, {"m": mask}, geometry=lopsided_geometry(SHAPE), labels=labels)


def test_windows() -> None:
    ct = np.array([-1000, -160, 40, 240, 3000], dtype=np.int16).reshape(5, 1, 1)
    for modality in ("CT", ""):
        assert windowed(ct, modality).ravel().tolist() == [0, 0, 127, 255, 255]
    ramp = np.arange(1001, dtype=np.float32).reshape(-1, 1, 1)
    shown = windowed(ramp, "MR").ravel()
    assert shown[10] == 0
    assert shown[11] <= 1
    assert shown[995] == 255
    assert shown[502] == 127


def test_shapes_must_fit_the_grid() -> None:
    with pytest.raises(GeometryError, match=r"truth.*\(24, 20, 16\)"):
        overlay_planes(
            None, {"truth": np.zeros((2, 2, 2))}, geometry=lopsided_geometry(SHAPE), labels=LABELS
        )


def test_cuts_go_through_organs_not_between_them() -> None:
    mask = np.zeros((30, 12, 9), dtype=np.uint8)
    mask[2:8, 3:6, 2:7] = 1
    mask[20:27, 3:6, 2:7] = 2
    # Between them, at the centroid, there is nothing.
    along_i, along_j, along_k = best_cuts([np.zeros_like(mask), mask], mask.shape)
    assert along_i in (7, *range(20, 27))
    assert along_j in (3, 4, 5)
    assert along_k in range(2, 7)
