"""Previews: proportions, sides, colours, and scans that are hard to draw."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medseg.core.errors import GeometryError
from medseg.core.geometry import ALL_ORIENTATIONS, Geometry
from medseg.core.labels import LabelSet
from medseg.report.painting import shaded, window_of, windowed
from medseg.report.pictures import best_cuts
from medseg.report.previews import PreviewOptions, _Case, draw_montage, draw_preview, png_of
from medseg.report.solid import front_view
from tests.phantoms import blobs, oblique_affine

LABELS = LabelSet.from_names({1: "low", 2: "high"})
SHAPE = (34, 22, 15)


def colours_of(picture: Image.Image, colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.asarray((np.asarray(picture) == colour).all(axis=-1))


def test_every_orientation_gives_the_same_picture() -> None:
    voxels, mask = blobs(SHAPE)
    geometry = Geometry(SHAPE, np.diag([1.0, 1.5, 2.5, 1.0]))
    expected = np.asarray(draw_preview(mask, geometry, LABELS, voxels=voxels, modality="CT"))
    for turn in ALL_ORIENTATIONS[::7]:
        other = draw_preview(
            turn.apply(mask),
            geometry.reoriented(turn),
            LABELS,
            voxels=turn.apply(voxels),
            modality="CT",
        )
        np.testing.assert_array_equal(np.asarray(other), expected)


def test_true_proportion_and_sides() -> None:
    """A ball is round on every plane of an anisotropic grid; the patient's right is left."""
    shape, spacing_mm = (60, 40, 12), np.array([1.0, 1.5, 5.0])
    places = np.indices(shape).T * spacing_mm
    ball = (((places - np.array([45.0, 30.0, 30.0])) ** 2).sum(axis=-1).T <= 12.5**2) * 1
    geometry = Geometry(shape, np.diag([*spacing_mm, 1.0]))
    case = _Case(ball.astype(np.uint8), geometry, LABELS, np.zeros(shape), "")
    panels = case.panels(120)
    assert len(panels) == 5
    for panel in panels[:3]:
        colour = case.colours[1]
        seen = (panel == colour).all(axis=-1)
        rows, columns = np.nonzero(seen)
        assert np.ptp(rows) == pytest.approx(np.ptp(columns), rel=0.25)
    _, columns = np.nonzero((panels[0] == case.colours[1]).all(axis=-1))
    assert columns.mean() < 0.4 * panels[0].shape[1]


def test_the_planes_are_those_of_the_pictures() -> None:
    for seed in range(5):
        mask = blobs(SHAPE, seed=seed)[1]
        case = _Case(mask, Geometry(SHAPE, np.diag([1.0, 1.5, 2.5, 1.0])), LABELS, None, "")
        assert tuple(case._best_cuts()) == best_cuts([mask], SHAPE)


def test_solid_view_shows_what_is_in_front() -> None:
    mask = np.zeros((9, 8, 7), dtype=np.uint8)
    mask[2:6, 1:3, 1:4] = 1
    mask[4:8, 5:7, 2:6] = 2
    table = np.array([0, 1, 2], dtype=np.uint16)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], dtype=np.uint8)
    picture, shown = front_view(
        mask, table, colours, spacing_mm=(1.0, 1.0, 1.0), size_px=(7, 9), paper=(9, 9, 9)
    )
    # The second lies farther to the front, and hides a corner of the first.
    expected = np.where(mask.max(axis=1) == 2, 2, mask.max(axis=1))[::-1, ::-1].T
    np.testing.assert_array_equal(shown, expected)
    assert (picture[shown == 0] == 9).all()
    assert (picture[shown == 2][:, 1] > 0).all()
    assert (picture[shown == 2][:, 0] == 0).all()


def test_legend_and_volumes() -> None:
    voxels, mask = blobs(SHAPE)
    geometry = Geometry(SHAPE, oblique_affine())
    few = draw_preview(mask, geometry, LABELS, voxels=voxels, title="case 1")
    fewer = draw_preview(
        mask, geometry, LABELS, voxels=voxels, title="case 1", options=PreviewOptions(organs=1)
    )
    for label in LABELS.labels:
        assert colours_of(few, label.colour).sum() > 100
    assert colours_of(fewer, LABELS.labels[0].colour).sum() > 100
    squares = [colours_of(picture, LABELS.labels[1].colour).sum() for picture in (few, fewer)]
    assert squares[0] > squares[1]
    png = Image.open(io.BytesIO(png_of(few)))
    np.testing.assert_array_equal(np.asarray(png), np.asarray(few))


def _cases() -> list[tuple[str, NDArray[Any], NDArray[Any] | None]]:
    voxels, mask = blobs(SHAPE)
    torn = voxels.astype(np.float32)
    torn[:10] = np.nan
    torn[10:12] = np.inf
    one = np.zeros(SHAPE, dtype=np.int32)
    one[33, 21, 14] = 1
    flat, flat_mask = blobs((40, 30, 1))
    colour = np.stack([np.clip(flat / 4, 0, 255).astype(np.uint8)] * 3)
    return [
        ("no scan", mask, None),
        ("NaN", mask, torn),
        ("only NaN", mask, np.full(SHAPE, np.nan)),
        ("empty mask", np.zeros(SHAPE, dtype=np.uint8), voxels),
        ("one voxel", one, voxels),
        ("full", np.full(SHAPE, 2, dtype=np.uint16), voxels),
        ("unknown labels", (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 301).astype(np.int64), None),
        ("negative", mask.astype(np.int16) - 1, voxels),
        ("flat", flat_mask, flat),
        ("colours", flat_mask, colour),
        ("channels", mask, np.stack([voxels, voxels + 1])),
        ("line", np.ones((30, 1, 1), dtype=np.uint8), None),
    ]


@pytest.mark.parametrize(("name", "mask", "voxels"), _cases(), ids=lambda x: str(x)[:12])
def test_awkward_cases(name: str, mask: NDArray[Any], voxels: NDArray[Any] | None) -> None:
    geometry = Geometry(mask.shape, oblique_affine())
    picture = draw_preview(mask, geometry, LABELS, voxels=voxels, title=name)
    assert min(picture.size) > 30


def test_other_shapes_are_refused() -> None:
    voxels, mask = blobs(SHAPE)
    with pytest.raises(GeometryError, match="scan"):
        draw_preview(mask, Geometry(SHAPE, np.eye(4)), LABELS, voxels=voxels[:5])


def test_montage() -> None:
    pictures = [(str(n), Image.new("RGB", (900, 300 + 10 * n), (n, n, n))) for n in range(1, 8)]
    sheet = draw_montage(pictures)
    assert sheet.width < 3000
    seen = np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)
    assert {(n, n, n) for n in range(1, 8)} <= {tuple(row) for row in seen.tolist()}
    single = draw_montage(pictures[:1])
    assert single.width < 660


def test_window_of_parts_is_that_of_the_whole() -> None:
    voxels = blobs(SHAPE)[0]
    np.testing.assert_array_equal(shaded(voxels[3], window_of(voxels, "")), windowed(voxels, "")[3])
    edges = [window_of(voxels - 1000 * n, "") for n in range(2)]
    assert all(low < high for low, high in edges)
    assert any(one != other for one, other in pairwise(edges))
