"""Instances: nuclei that touch, numbers by position, diameters by hand and by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from medseg.core.errors import GeometryError, LabelError, SettingsError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.evaluation.lesions import lesion_scores
from medseg.io.image2d import PICTURE_AFFINE_RAS
from medseg.postprocess.calipers import feret_mm
from medseg.postprocess.instances import (
    InstanceOptions,
    find_instances,
    measure_instances,
)
from tests.phantoms import lopsided_geometry, oblique_affine

NUCLEUS = LabelSet.from_names({9: "nucleus"})


def touching_nuclei(
    shape: tuple[int, int, int], geometry: Geometry, *, count: int, radius_mm: float, seed: int = 0
) -> np.ndarray:
    """Numbered ellipsoids that touch or overlap: each new one grows out of an earlier one.

    Centres keep at least 1.6 mean radii from all others, and each but every fourth is placed at
    1.6 to 1.9 radii from an earlier one, so that about three in four are joined to another;
    axes are 0.85 to 1.1 radii long.
    """
    rng = np.random.default_rng(seed)
    steps = geometry.affine_ras[:3, :3]
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    places = grid @ steps.T
    flat = shape[2] == 1
    low, high = places.min(axis=(0, 1, 2)), places.max(axis=(0, 1, 2))
    centres: list[np.ndarray] = []
    nearest, numbers = np.ones(shape), np.zeros(shape, np.uint16)
    while len(centres) < count:
        if centres and len(centres) % 4:
            step = steps @ rng.standard_normal(3) * [1, 1, not flat]
            step *= rng.uniform(1.6, 1.9) * radius_mm / np.linalg.norm(step)
            centre = centres[rng.integers(len(centres))] + step
        else:
            centre = steps @ (rng.uniform(0, 1, 3) * (np.array(shape) - 1))
        inside = np.all((centre >= low) & (centre <= high) | (low == high))
        if not inside or any(np.linalg.norm(centre - c) < 1.6 * radius_mm for c in centres):
            continue
        centres.append(centre)
        away = np.linalg.norm((places - centre) / rng.uniform(0.85, 1.1, 3), axis=-1) / radius_mm
        own = away < nearest
        nearest[own], numbers[own] = away[own], len(centres)
    return numbers


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("flat", [True, False])
def test_nuclei_that_touch_are_told_apart(flat: bool, seed: int) -> None:
    shape = (210, 160, 1) if flat else (60, 50, 30)
    affine = oblique_affine((0.5, 0.65, 1.0), angles_deg=(0, 0, 25) if flat else (12, -9, 20))
    geometry = Geometry(shape, affine)
    radius_mm = 5.0
    truth = touching_nuclei(
        shape, geometry, count=60 if flat else 24, radius_mm=radius_mm, seed=seed
    )
    mask = np.where(truth > 0, 9, 0).astype(np.uint8)
    quality = {}
    for split in ("watershed", "components"):
        found = find_instances(mask, geometry, NUCLEUS, InstanceOptions(split))
        quality[split] = lesion_scores(found.numbers, truth).panoptic_quality
    assert quality["watershed"] >= 0.8
    assert quality["components"] <= 0.3


def test_numbers_go_by_label_and_place() -> None:
    geometry = Geometry((12, 10, 8), np.diag([-1.0, -2.0, 3.0, 1.0]))
    mask = np.zeros(geometry.shape, np.int16)
    corners = [(1, 1, 6), (8, 1, 6), (1, 7, 6), (4, 4, 1)]
    for i, j, k in corners:
        mask[i : i + 2, j : j + 2, k : k + 2] = 300
    mask[10, 9, 4] = 2
    labels = LabelSet.from_names({300: "node", 2: "cyst"})
    found = find_instances(mask, geometry, labels)
    assert found.values == (2, 300, 300, 300, 300)
    # High before low; then in front (small j, as j runs to the back); then the right (small i).
    assert [int(found.numbers[corner]) for corner in corners] == [2, 3, 4, 5]
    assert found.numbers[10, 9, 4] == 1
    for turn in ((1, 0, 2), (2, 0, 1)):
        affine = geometry.affine_ras[:, [*turn, 3]]
        moved = Geometry(tuple(geometry.shape[axis] for axis in turn), affine)
        other = find_instances(mask.transpose(turn), moved, labels)
        np.testing.assert_array_equal(other.numbers, found.numbers.transpose(turn))


def test_pictures_are_read_from_top_to_bottom() -> None:
    mask = np.zeros((9, 7, 1), np.uint8)
    mask[6, 1], mask[1, 1], mask[2, 5] = 1, 1, 1
    geometry = Geometry(mask.shape, PICTURE_AFFINE_RAS)
    found = find_instances(mask, geometry, LabelSet.from_names({1: "nucleus"}))
    assert [int(found.numbers[at]) for at in ((1, 1, 0), (6, 1, 0), (2, 5, 0))] == [1, 2, 3]


def test_the_table_by_hand() -> None:
    geometry = Geometry((12, 10, 8), oblique_affine((1.0, 2.0, 3.0), angles_deg=(0, 0, 0)))
    mask = np.zeros(geometry.shape, np.uint8)
    mask[0:4, 2:5, 1:3] = 9
    mask[8, 8, 7] = 9
    voxels = np.arange(mask.size, dtype=np.float32).reshape(1, *mask.shape)
    voxels[0, 0, 2, 1] = np.nan
    found = find_instances(mask, geometry, NUCLEUS)
    table = measure_instances(found, geometry, NUCLEUS, voxels=voxels)
    high, low = table.rows
    assert (high["number"], high["label"], high["value"]) == (1, "nucleus", 9)
    assert (high["touches_border"], low["touches_border"]) == ("S", "L")
    assert (high["volume_mm3"], low["volume_mm3"]) == (6.0, 4 * 3 * 2 * 6.0)
    assert high["diameter_max_mm"] == pytest.approx(math.sqrt(1 + 4 + 9))
    assert high["diameter_min_mm"] == pytest.approx(1.0)
    assert low["diameter_max_mm"] == pytest.approx(math.sqrt(4**2 + 6**2 + 6**2))
    assert low["diameter_min_mm"] == pytest.approx(4.0)
    place = geometry.affine_ras @ [1.5, 3.0, 1.5, 1.0]
    assert [low[f"centroid_{axis}_mm"] for axis in "xyz"] == pytest.approx(list(place[:3]))
    inside = voxels[0, 0:4, 2:5, 1:3]
    assert low["mean"] == pytest.approx(float(np.nanmean(inside.astype(np.float64))))
    assert high["mean"] == float(voxels[0, 8, 8, 7])


def test_areas_and_channels_of_a_flat_image() -> None:
    geometry = Geometry((9, 1, 7), oblique_affine((0.5, 4.0, 2.0)))
    mask = np.zeros(geometry.shape, np.uint8)
    mask[2:5, 0, 1:3] = 9
    voxels = np.stack([np.full(mask.shape, 3), np.full(mask.shape, 5)])
    found = find_instances(mask, geometry, NUCLEUS)
    (row,) = measure_instances(
        found, geometry, NUCLEUS, voxels=voxels, channels=("red", "green")
    ).rows
    assert "volume_mm3" not in row
    assert row["area_mm2"] == pytest.approx(6 * 0.5 * 2.0)
    assert row["diameter_max_mm"] == pytest.approx(math.hypot(1.5, 4.0))
    assert row["diameter_min_mm"] == pytest.approx(1.5)
    assert (row["mean_red"], row["mean_green"]) == (3.0, 5.0)


def test_widths_against_all_directions() -> None:
    """Turned, sheared, bumpy: no direction is narrower than the least, and one comes close."""
    rng = np.random.default_rng(3)
    affine = oblique_affine((0.8, 1.1, 2.3))
    affine[0, 1] += 0.3
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (13, 9, 6)), indexing="ij"), axis=-1)
    for _ in range(3):
        region = np.linalg.norm((grid - [6, 4, 2.5]) / rng.uniform(1.5, 6, 3), axis=-1) < 1
        geometry = Geometry(region.shape, affine)
        largest, least = feret_mm(region, geometry)
        corners = np.argwhere(region)[:, None] + np.indices((2, 2, 2)).reshape(3, 8).T - 0.5
        points = corners.reshape(-1, 3) @ affine[:3, :3].T
        points = np.unique(np.round(points, 9), axis=0)
        best, spread = np.zeros(3), 1.0
        for _ in range(4):  # ever nearer to the narrowest direction
            directions = best + spread * rng.standard_normal((20_000, 3))
            directions /= np.linalg.norm(directions, axis=1, keepdims=True)
            widths = np.ptp(points @ directions.T, axis=0)
            assert least <= widths.min() + 1e-9
            assert widths.max() <= largest + 1e-9
            best, spread = directions[widths.argmin()], spread / 8
        assert widths.min() <= least * 1.005
        assert largest == pytest.approx(float(pdist(points).max()))


def test_an_edge_pair_is_narrower_than_any_face() -> None:
    """Of a regular tetrahedron: 1 / sqrt 2 edges between edges, sqrt(2 / 3) across a face."""
    from scipy.spatial import ConvexHull

    from medseg.postprocess import calipers

    points = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=np.float64)
    edge, hull = math.sqrt(8), ConvexHull(points)
    across_face = edge * math.sqrt(2 / 3)
    least = calipers._between_edges(hull, points, points, across_face)
    assert least == pytest.approx(edge / math.sqrt(2))


def test_small_ones_are_left_out() -> None:
    geometry = lopsided_geometry((11, 8, 6))
    mask = np.zeros(geometry.shape, np.uint8)
    mask[1:3, 1:3, 1:3] = mask[8, 6, 4] = 9
    size = geometry.voxel_volume_mm3
    for least, count in ((0.0, 2), (size, 2), (1.01 * size, 1), (9 * size, 0)):
        found = find_instances(mask, geometry, NUCLEUS, InstanceOptions(least=least))
        assert len(found.values) == found.numbers.max() == count


@pytest.mark.parametrize("split", ["watershed", "components"])
def test_masks_that_are_odd(split: str) -> None:
    geometry = lopsided_geometry((7, 5, 4))
    options = InstanceOptions(split)  # type: ignore[arg-type]
    full = np.full(geometry.shape, 9, np.uint16)
    assert find_instances(full, geometry, NUCLEUS, options).values == (9,)
    empty = find_instances(full * 0, geometry, NUCLEUS, options)
    assert empty.values == measure_instances(empty, geometry, NUCLEUS).rows == ()
    one = np.zeros_like(full)
    one[3, 2, 1] = 9
    assert find_instances(one, geometry, NUCLEUS, options).numbers[3, 2, 1] == 1
    turned = np.asfortranarray(full)
    assert find_instances(turned, geometry, NUCLEUS, options).values == (9,)


def test_many_and_bad_ones() -> None:
    checked = np.indices((90, 90, 90)).sum(axis=0) % 2 == 0
    mask = np.where(checked, 9, 0).astype(np.uint8)
    geometry = Geometry(mask.shape, np.eye(4))
    with pytest.raises(LabelError, match="65535"):
        find_instances(mask, geometry, NUCLEUS, InstanceOptions("components", connectivity=6))
    for facts in ({"split": "knife"}, {"neck": 1.0}, {"least": -1.0}):
        with pytest.raises(SettingsError):
            InstanceOptions(**facts)  # type: ignore[arg-type]
    found = find_instances(mask[:4, :4, :4], Geometry((4, 4, 4), np.eye(4)), NUCLEUS)
    with pytest.raises(GeometryError, match="shape"):
        measure_instances(
            found, Geometry((4, 4, 4), np.eye(4)), NUCLEUS, voxels=np.zeros((1, 3, 4, 4))
        )
