"""The way to a grid that models share, and labels back from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch.nn.functional import interpolate

from medseg.core.geometry import ALL_ORIENTATIONS, Geometry, Orientation
from medseg.core.scan import Scan
from medseg.core.slices import SlicePlaces
from medseg.transforms.shared_grid import labels_from_shared_grid, onto_shared_grid
from tests.phantoms import lopsided_volume, oblique_affine

SPACING = (2.2, 1.7, 3.0)


@pytest.mark.parametrize("turn", ALL_ORIENTATIONS[::7])
def test_there_and_back(turn: Orientation) -> None:
    voxels, _ = lopsided_volume((13, 10, 7), dtype=np.float32)
    straight = Geometry((13, 10, 7), oblique_affine((1.5, 2.0, 3.5), angles_deg=(5, -4, 8)))
    scan = Scan.from_array(turn.apply(voxels), straight.reoriented(turn))
    there, back = onto_shared_grid(scan, SPACING, order=1)
    assert there.geometry.axis_codes == "RAS"
    assert there.geometry.difference(back.working) is None
    theirs = interpolate(torch.from_numpy(voxels)[None, None], size=there.geometry.shape,
                         mode="trilinear")[0, 0]  # fmt: skip
    np.testing.assert_allclose(there.voxels()[0], theirs.numpy(), rtol=1e-4)
    # Each voxel takes the label of that which its centre lies in.
    labels = np.arange(np.prod(there.geometry.shape)).reshape(there.geometry.shape)
    labels = labels.astype(np.uint16)
    found = labels_from_shared_grid(labels, back)
    assert found.dtype == labels.dtype
    assert found.shape == scan.geometry.shape
    own = np.stack(np.meshgrid(*(np.arange(n) for n in found.shape), indexing="ij"), axis=-1)
    matrix = np.linalg.solve(there.geometry.affine_ras, scan.geometry.affine_ras)
    places = own @ matrix[:3, :3].T + matrix[:3, 3]
    nearest = np.floor(places + 0.5 + 1e-6).astype(int)
    nearest = np.clip(nearest, 0, np.array(labels.shape) - 1)
    clear = (np.abs(places + 0.5 - np.round(places + 0.5)) > 1e-4).all(axis=-1)
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(found[clear], labels[tuple(nearest[clear].T)])


def test_cubic_keeps_a_ramp() -> None:
    ramp = np.broadcast_to(np.arange(24.0)[:, None, None], (24, 6, 5)).astype(np.float32)
    scan = Scan.from_array(ramp, Geometry((24, 6, 5), np.diag([1.0, 1.0, 1.0, 1.0])))
    there, _ = onto_shared_grid(scan, (0.5, 1.0, 1.0), order=3)
    line = there.voxels()[0][:, 3, 2]
    np.testing.assert_allclose(np.diff(line)[12:-12], 0.5, atol=1e-3)


@pytest.mark.parametrize("kind", ["sheared", "uneven"])
def test_grids_that_the_axes_do_not_follow(kind: str) -> None:
    matrix = np.diag([1.5, 2.0, 2.5, 1.0])
    if kind == "sheared":
        matrix[1, 2] = 0.8
    scan = Scan.from_array(np.zeros((12, 10, 8), np.float32), Geometry((12, 10, 8), matrix))
    there, back = onto_shared_grid(scan, SPACING, order=1)
    k = np.arange(8.0)
    if kind == "uneven":
        k = np.array([0.0, 1.0, 2.6, 4.0, 7.0])
        places = SlicePlaces(tuple(k), tuple(2.5 * k), ((0.0, 0.0, 0.0),) * 5)
        back = back.onto_slices(places)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, there.geometry.shape).astype(np.uint8)
    found = labels_from_shared_grid(labels, back)
    grid = np.meshgrid(np.arange(12.0), np.arange(10.0), k, indexing="ij")
    way = np.linalg.solve(there.geometry.affine_ras, matrix)
    points = np.tensordot(way[:3, :3], np.stack(grid), 1) + way[:3, 3][:, None, None, None]
    expected = map_coordinates(labels, points, order=0, mode="nearest")
    assert found.shape == expected.shape
    # Halfway between two voxels either is right.
    clear = (np.abs(points + 0.5 - np.round(points + 0.5)) > 1e-4).all(axis=0)
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert replace(back, slices=None).target == scan.geometry
