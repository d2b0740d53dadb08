"""Surfaces and outlines against the masks that they are made of, and scikit-image."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.core.errors import InputError, MissingPackageError, SettingsError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.results import Mesh
from medseg.postprocess.contours import contours, plane_axis, rasterise
from medseg.postprocess.surfaces import MeshOptions, meshes
from tests.phantoms import lopsided_geometry, oblique_affine

SHAPE = (46, 37, 21)
LABELS = LabelSet.from_names({1: "shell", 2: "dot", 3: "corner", 4: "absent", 5: "pair"})


def phantom() -> NDArray[np.uint8]:
    """An ellipsoid with a cavity, one voxel, a block in the corner, two parts."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    grid = np.indices(SHAPE).T
    away = (((grid - np.array([18, 20, 11])) / np.array([13, 11, 7])) ** 2).sum(axis=-1).T
    mask[(away <= 1) & (away > 0.2)] = 1
    mask[40, 3, 2] = 2
    mask[38:, 25:, 14:] = 3
    mask[2:8, 1:5, 1:4] = mask[30:37, 2:9, 15:20] = 5
    return mask


def flipped(geometry: Geometry) -> Geometry:
    """The same with a left-handed affine."""
    return Geometry(geometry.shape, geometry.affine_ras @ np.diag([-1.0, 1.0, 1.0, 1.0]))


def truth(mask: NDArray[Any], value: int, geometry: Geometry) -> tuple[float, NDArray[Any]]:
    """Volume in mm3 and centroid in mm, by counting voxels."""
    places = np.argwhere(mask == value)
    affine = geometry.affine_ras
    centre = affine[:3, :3] @ places.mean(axis=0) + affine[:3, 3]
    return len(places) * geometry.voxel_volume_mm3, centre


def is_closed(mesh: Mesh) -> bool:
    """Every edge is run through as often in one direction as in the other."""
    edges = np.concatenate([mesh.faces[:, [n, (n + 1) % 3]] for n in range(3)]).astype(np.int64)
    there = np.sort(edges @ [len(mesh.vertices_mm), 1])
    back = np.sort(edges[:, ::-1] @ [len(mesh.vertices_mm), 1])
    return bool(np.array_equal(there, back))


@pytest.mark.parametrize("smoothing", [0, 12])
@pytest.mark.parametrize("left_handed", [False, True])
def test_volume_and_place_are_those_of_the_voxels(smoothing: int, left_handed: bool) -> None:
    mask, geometry = phantom(), lopsided_geometry(SHAPE)
    geometry = flipped(geometry) if left_handed else geometry
    found = meshes(mask, geometry, LABELS, options=MeshOptions(smoothing=smoothing))
    assert [mesh.label.name for mesh in found] == ["shell", "dot", "corner", "pair"]
    for mesh in found:
        volume, centre = truth(mask, mesh.label.value, geometry)
        assert mesh.volume_mm3 == pytest.approx(volume, rel=1e-3)
        np.testing.assert_allclose(mesh.centroid_mm, centre, atol=0.01)
        assert is_closed(mesh)


def test_the_surface_stays_at_the_border() -> None:
    mask, geometry = phantom(), lopsided_geometry(SHAPE)
    for mesh in meshes(mask, geometry, LABELS):
        places = (mesh.vertices_mm - geometry.affine_ras[:3, 3]) @ np.linalg.inv(
            geometry.affine_ras[:3, :3]
        ).T
        border = np.argwhere(mask == mesh.label.value)
        nearest = [np.abs(border - place).max(axis=1).min() for place in places[::7]]
        assert max(nearest) < 1.2


def test_area_of_a_sphere() -> None:
    geometry = Geometry((60, 50, 40), oblique_affine((1.0, 1.25, 1.6)))
    places = np.indices(geometry.shape).T * np.array([1.0, 1.25, 1.6])
    mask = (((places - 30.0) ** 2).sum(axis=-1).T <= 20.0**2).astype(np.uint8)
    (mesh,) = meshes(mask, geometry, LABELS)
    assert mesh.area_mm2 == pytest.approx(4 * np.pi * 20**2, rel=0.015)


def test_agrees_with_marching_cubes_of_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.measure")
    mask, geometry = phantom(), lopsided_geometry(SHAPE)
    (mesh,) = meshes(mask, geometry, LABELS.select(["shell"]))
    points, faces, _, _ = skimage.marching_cubes(np.pad(mask == 1, 1), 0.5)
    affine = geometry.affine_ras
    other = Mesh(mesh.label, (points - 1.0) @ affine[:3, :3].T + affine[:3, 3], faces)
    assert abs(other.volume_mm3) == pytest.approx(mesh.volume_mm3, rel=0.02)
    np.testing.assert_allclose(other.centroid_mm, mesh.centroid_mm, atol=0.1)


def test_fewer_triangles_enclose_the_same() -> None:
    pytest.importorskip("fast_simplification")
    mask, geometry = phantom(), lopsided_geometry(SHAPE)
    full = meshes(mask, geometry, LABELS)
    small = meshes(mask, geometry, LABELS, options=MeshOptions(reduction=0.6, workers=2))
    assert len(small[0].faces) < 0.45 * len(full[0].faces)
    for mesh in small:
        volume, centre = truth(mask, mesh.label.value, geometry)
        assert mesh.volume_mm3 == pytest.approx(volume, rel=0.005)
        np.testing.assert_allclose(mesh.centroid_mm, centre, atol=0.05)


def test_fewer_triangles_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    with pytest.raises(MissingPackageError, match="fast_simplification"):
        meshes(phantom(), lopsided_geometry(SHAPE), LABELS, options=MeshOptions(reduction=0.5))


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_outlines_give_the_mask_back(plane: str) -> None:
    mask, geometry = phantom(), lopsided_geometry(SHAPE)
    found = contours(mask, geometry, LABELS, plane=plane)
    np.testing.assert_array_equal(rasterise(found), mask)
    for value in (1, 5):
        volume, centre = truth(mask, value, geometry)
        # An outline cuts the corners off, half a pixel in all for each convex region.
        assert found.volume_mm3(value) == pytest.approx(volume, rel=0.01 if value == 1 else 0.03)
        np.testing.assert_allclose(found.centroid_mm(value), centre, atol=0.02 * np.cbrt(volume))
    assert max(len(region.rings) for region in found.regions) == 2
    assert np.isnan(found.centroid_mm(4)).all()


def test_mesh_outlines_and_mask_agree() -> None:
    """Within 1 % of the volume and of the organ's size, on an oblique lopsided grid."""
    mask, geometry = phantom(), lopsided_geometry(SHAPE)
    (mesh,) = meshes(mask, geometry, LABELS.select(["shell"]))
    found = contours(mask, geometry, LABELS)
    volume, centre = truth(mask, 1, geometry)
    size_mm = np.cbrt(volume)
    for other_volume, other_centre in (
        (mesh.volume_mm3, mesh.centroid_mm),
        (found.volume_mm3(1), found.centroid_mm(1)),
    ):
        assert other_volume == pytest.approx(volume, rel=0.01)
        assert np.linalg.norm(other_centre - centre) < 0.01 * size_mm


def test_checkerboards_come_back() -> None:
    rng = np.random.Generator(np.random.PCG64(3))
    mask = rng.integers(0, 4, (9, 8, 5)).astype(np.int64)
    geometry = lopsided_geometry((9, 8, 5))
    np.testing.assert_array_equal(rasterise(contours(mask, geometry, LABELS)), mask)
    for mesh in meshes(mask, geometry, LABELS):
        volume, _ = truth(mask, mesh.label.value, geometry)
        assert mesh.volume_mm3 == pytest.approx(volume, rel=0.01)
        assert is_closed(mesh)


def test_awkward_masks() -> None:
    geometry = lopsided_geometry((6, 5, 1))
    empty = np.zeros((6, 5, 1), dtype=np.uint16)
    assert meshes(empty, geometry, LABELS) == []
    assert contours(empty, geometry, LABELS).regions == ()
    full = np.ones((6, 5, 1), dtype=bool)
    (mesh,) = meshes(full, geometry, LABELS)
    assert mesh.volume_mm3 == pytest.approx(30 * geometry.voxel_volume_mm3, rel=1e-3)
    flat = contours(full, geometry, LABELS, plane="coronal")
    assert flat.axis == 2
    np.testing.assert_array_equal(rasterise(flat), full)
    negative = np.full((6, 5, 1), -3, dtype=np.int16)
    negative[2, 2] = 60000 % 300
    assert meshes(negative, geometry, LABELS) == []
    with pytest.raises(InputError, match="whole numbers"):
        meshes(full.astype(np.float32), geometry, LABELS)
    with pytest.raises(InputError, match="shape"):
        contours(full[:3], geometry, LABELS)
    with pytest.raises(SettingsError, match="axial"):
        plane_axis(geometry, "oblique")
    for wrong in ({"smoothing": -1}, {"reduction": 1.0}, {"workers": 0}):
        with pytest.raises(SettingsError):
            MeshOptions(**wrong)


def test_three_hundred_labels() -> None:
    mask = np.arange(1, 301, dtype=np.uint16).reshape(10, 6, 5)
    geometry = lopsided_geometry((10, 6, 5))
    labels = LabelSet.from_names({value: str(value) for value in range(1, 301)})
    assert len(meshes(mask, geometry, labels)) == 300
    np.testing.assert_array_equal(rasterise(contours(mask, geometry, labels)), mask)
