"""Geometry against nibabel, SimpleITK, and hand-computed values."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.errors import GeometryError
from medseg.core.geometry import ALL_ORIENTATIONS, Geometry, Orientation
from tests.phantoms import lopsided_geometry, lopsided_volume, oblique_affine

SHAPE = (11, 8, 6)


def _corners(shape: tuple[int, int, int]) -> np.ndarray:
    grid = np.stack(np.meshgrid(*([-0.5, n - 0.5] for n in shape), indexing="ij"), -1)
    return np.c_[grid.reshape(-1, 3), np.ones(8)]


def test_there_are_48_different_orientations() -> None:
    assert len(set(ALL_ORIENTATIONS)) == 48


@pytest.mark.parametrize("oblique", [False, True])
def test_orientation_to_ras_agrees_with_nibabel(oblique: bool) -> None:
    voxels, affine = lopsided_volume(SHAPE, oblique=oblique)
    for turn in ALL_ORIENTATIONS:
        geometry = Geometry(SHAPE, affine).reoriented(turn)
        array = turn.apply(voxels)
        image = nib.Nifti1Image(array, geometry.affine_ras)
        assert geometry.axis_codes == "".join(nib.aff2axcodes(geometry.affine_ras))
        canonical = nib.as_closest_canonical(image)
        back = geometry.orientation_to_ras()
        assert np.array_equal(back.apply(array), np.asarray(canonical.dataobj))
        assert np.allclose(geometry.reoriented(back).affine_ras, canonical.affine, atol=1e-9)


def test_reoriented_voxels_keep_their_place_in_the_patient() -> None:
    voxels, affine = lopsided_volume(SHAPE, oblique=True)
    source = Geometry(SHAPE, affine)
    for turn in ALL_ORIENTATIONS:
        turned, geometry = turn.apply(voxels), source.reoriented(turn)
        assert turned.shape == geometry.shape
        i, j, k = (int(axis[0]) for axis in np.nonzero(turned == voxels[7, 2, 4]))
        assert np.allclose(geometry.affine_ras @ [i, j, k, 1], affine @ [7, 2, 4, 1])


def test_orientation_inverse_undoes_it_also_with_channels() -> None:
    voxels = np.arange(2 * 5 * 4 * 3).reshape(2, 5, 4, 3)
    for turn in ALL_ORIENTATIONS:
        assert np.array_equal(turn.inverse().apply(turn.apply(voxels)), voxels)
        shape = turn.apply(voxels).shape[1:]
        both = turn.affine((5, 4, 3)) @ turn.inverse().affine((shape[0], shape[1], shape[2]))
        assert np.array_equal(both, np.eye(4))


def test_orientation_apply_is_a_view() -> None:
    voxels = np.zeros((5, 4, 3))
    assert np.shares_memory(Orientation((2, 0, 1), (True, False, True)).apply(voxels), voxels)


def test_unequal_spacing_does_not_tip_the_orientation() -> None:
    # 40 degrees about z with 1 x 1 x 10 mm voxels: still nearest to RAS.
    affine = oblique_affine((10.0, 1.0, 1.0), angles_deg=(0.0, 0.0, 40.0))
    assert Geometry(SHAPE, affine).axis_codes == "RAS"


@pytest.mark.parametrize("oblique", [False, True])
def test_lps_agrees_with_simpleitk(oblique: bool) -> None:
    source = lopsided_geometry(SHAPE, oblique=oblique)
    for turn in ALL_ORIENTATIONS:
        geometry = source.reoriented(turn)
        image = sitk.Image(geometry.shape, sitk.sitkUInt8)
        origin, spacing, direction = geometry.to_lps()
        image.SetOrigin(origin)
        image.SetSpacing(spacing)
        image.SetDirection(direction)
        for index in ((0, 0, 0), (2, 1, 4), tuple(n - 1 for n in geometry.shape)):
            x, y, z = image.TransformIndexToPhysicalPoint(index)
            assert np.allclose((geometry.affine_ras @ [*index, 1])[:3], [-x, -y, z])
        again = Geometry.from_lps(
            image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection()
        )
        assert again.difference(geometry, tolerance_voxels=1e-9) is None


def test_from_lps_in_2d() -> None:
    turn = (0.8, -0.6, 0.6, 0.8)
    geometry = Geometry.from_lps((7, 5), (3.0, -4.0), (0.5, 2.0), turn)
    image = sitk.Image([7, 5], sitk.sitkUInt8)
    image.SetOrigin((3.0, -4.0))
    image.SetSpacing((0.5, 2.0))
    image.SetDirection(turn)
    x, y = image.TransformIndexToPhysicalPoint((6, 3))
    assert geometry.shape == (7, 5, 1)
    assert np.allclose(geometry.affine_ras @ [6, 3, 0, 1], [-x, -y, 0, 1])


def test_spacing_volume_and_codes_by_hand() -> None:
    geometry = lopsided_geometry(SHAPE)
    assert np.allclose(geometry.spacing_mm, (1.5, 2.0, 3.5))
    assert np.isclose(geometry.voxel_volume_mm3, 10.5)
    assert geometry.axis_codes == "RAS"
    assert Geometry((2, 3, 4), np.diag([-1.0, -2.0, 3.0, 1.0])).axis_codes == "LPS"


def test_sheared_voxel_volume_and_shear() -> None:
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    assert Geometry((10, 10, 11), affine).shear_voxels == pytest.approx(0.0, abs=1e-12)
    affine[1, 2] = 0.3  # each slice slips by 0.3 mm along y: gantry tilt
    sheared = Geometry((10, 10, 11), affine)
    assert sheared.voxel_volume_mm3 == pytest.approx(24.0)
    # Over 10 slices the slip is 3 mm; half of it is taken up by turning the whole grid.
    assert 0.4 < sheared.shear_voxels < 0.8
    assert lopsided_geometry(SHAPE).shear_voxels < 1e-9


def test_with_shape_keeps_the_outer_edges() -> None:
    geometry = lopsided_geometry(SHAPE)
    other = geometry.with_shape((22, 5, 9))
    ours = _corners(geometry.shape) @ geometry.affine_ras.T
    theirs = _corners(other.shape) @ other.affine_ras.T
    assert np.allclose(ours, theirs)
    assert np.allclose(other.spacing_mm, (1.5 * 11 / 22, 2.0 * 8 / 5, 3.5 * 6 / 9))


def test_shape_at() -> None:
    geometry = lopsided_geometry(SHAPE)  # 16.5 x 16 x 21 mm
    assert geometry.shape_at((3.0, None, 2.0)) == (6, 8, 11)  # 5.5 and 10.5 round up
    assert geometry.shape_at((100.0, 2.0, None)) == (1, 8, 6)
    straight = lopsided_geometry(SHAPE, oblique=False)
    for spacing in ((3.0, 4.0, 2.0), (1.1, 0.7, 3.3), (1.0, 1.0, 6.0)):
        assert geometry.shape_at(spacing) == straight.shape_at(spacing)


def test_difference_says_what_differs() -> None:
    geometry = lopsided_geometry(SHAPE)
    assert geometry.difference(Geometry(SHAPE, geometry.affine_ras.astype(np.float32))) is None
    assert "shape" in str(geometry.difference(geometry.with_shape((11, 8, 7))))
    moved = geometry.affine_ras.copy()
    moved[0, 3] += 5.0
    assert "5 mm" in str(geometry.difference(Geometry(SHAPE, moved)))
    cube = Geometry((5, 5, 5), np.diag([2.0, 2.0, 2.0, 1.0]))
    flipped = cube.reoriented(Orientation((0, 1, 2), (True, False, False)))
    assert "axes RAS against LAS" in str(cube.difference(flipped))


def test_difference_sees_a_turn_that_leaves_the_origin() -> None:
    geometry = lopsided_geometry((200, 200, 50))
    turned = geometry.affine_ras.copy()
    turned[:3, :3] = (
        oblique_affine(angles_deg=(0.0, 0.0, 0.05))[:3, :3]
        @ np.linalg.inv(oblique_affine(angles_deg=(0.0, 0.0, 0.0))[:3, :3])
        @ turned[:3, :3]
    )
    assert geometry.difference(Geometry(geometry.shape, turned)) is not None


def test_equal_geometries_share_a_hash_and_are_read_only() -> None:
    one, two = lopsided_geometry(SHAPE), lopsided_geometry(SHAPE)
    assert one == two
    assert hash(one) == hash(two)
    assert one != "grid"
    with pytest.raises(ValueError, match="read-only"):
        one.affine_ras[0, 0] = 7.0


@pytest.mark.parametrize(
    ("shape", "affine", "word"),
    [
        ((0, 2, 2), np.eye(4), "sizes"),
        ((2, 2), np.eye(4), "three"),
        ((2, 2, 2), np.eye(3), "4x4"),
        ((2, 2, 2), np.full((4, 4), np.nan), "finite"),
        ((2, 2, 2), np.diag([1e200, 1.0, 1.0, 1.0]), "finite"),
        ((2, 2, 2), np.diag([1.0, 0.0, 1.0, 1.0]), "independent"),
        ((2, 2, 2), np.ones((4, 4)), "independent"),
    ],
)
def test_impossible_grids_are_refused(
    shape: tuple[int, int, int], affine: np.ndarray, word: str
) -> None:
    with pytest.raises(GeometryError, match=word):
        Geometry(shape, affine)


_SIDES = st.integers(1, 40)
_STEPS = st.floats(0.2, 12.0)
_ANGLES = st.floats(-40.0, 40.0)


@given(
    shape=st.tuples(_SIDES, _SIDES, _SIDES),
    spacing=st.tuples(_STEPS, _STEPS, _STEPS),
    angles=st.tuples(_ANGLES, _ANGLES, _ANGLES),
    turn=st.sampled_from(ALL_ORIENTATIONS),
)
def test_orienting_to_ras_forgets_the_storage_order(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    angles: tuple[float, float, float],
    turn: Orientation,
) -> None:
    """Whatever order the voxels are stored in, in RAS the grid is the same."""
    source = Geometry(shape, oblique_affine(spacing, angles_deg=angles))
    stored = source.reoriented(turn)
    first = source.reoriented(source.orientation_to_ras())
    second = stored.reoriented(stored.orientation_to_ras())
    assert first.shape == second.shape
    assert np.allclose(first.affine_ras, second.affine_ras, atol=1e-6)
    assert first.shape_at((1.0, 1.5, None)) == second.shape_at((1.0, 1.5, None))


@given(
    shape=st.tuples(_SIDES, _SIDES, _SIDES),
    new=st.tuples(_SIDES, _SIDES, _SIDES),
    spacing=st.tuples(_STEPS, _STEPS, _STEPS),
)
def test_with_shape_is_undone_by_itself(
    shape: tuple[int, int, int], new: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    geometry = Geometry(shape, oblique_affine(spacing))
    again = geometry.with_shape(new).with_shape(shape)
    assert np.allclose(again.affine_ras, geometry.affine_ras, atol=1e-6)
    volume_mm3 = geometry.voxel_volume_mm3 * np.prod(shape)
    other = geometry.with_shape(new)
    assert np.isclose(other.voxel_volume_mm3 * np.prod(new), volume_mm3)


def test_cut_keeps_each_voxel_in_its_place() -> None:
    geometry = lopsided_geometry((9, 8, 7))
    part = geometry.cut((slice(2, 7), slice(1, 8), slice(3, 4)))
    assert part.shape == (5, 7, 1)
    np.testing.assert_allclose(
        part.affine_ras @ [1, 2, 0, 1], geometry.affine_ras @ [3, 3, 3, 1], atol=1e-9
    )
