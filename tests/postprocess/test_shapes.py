"""Holes and opening against SciPy, places by hand, on lopsided grids."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medseg.core.errors import LabelError, SettingsError
from medseg.core.labels import LabelSet
from medseg.postprocess.chain import apply_chain, apply_with_changes, parse_steps
from medseg.postprocess.components import keep_largest
from medseg.postprocess.shapes import close_label, fill_holes, open_label
from tests.phantoms import lopsided_geometry

SPACING_MM = (0.7, 1.1, 2.3)
LABELS = LabelSet.from_names({3: "liver", 7: "tumour"})


def _ball(radius_mm: float) -> np.ndarray:
    sides = [int(radius_mm / step) for step in SPACING_MM]
    grid = np.meshgrid(
        *(np.arange(-n, n + 1) * s for n, s in zip(sides, SPACING_MM, strict=True)), indexing="ij"
    )
    return sum(part**2 for part in grid) <= radius_mm**2 + 1e-9


def _blob(seed: int = 4) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((40, 33, 21))
    mask = np.zeros(noise.shape, np.uint8)
    mask[8:-8, 8:-8, 6:-6] = (ndimage.gaussian_filter(noise, 1.5) > -0.02)[8:-8, 8:-8, 6:-6]
    return mask


def test_opening_and_closing_equal_scipy() -> None:
    mask = _blob()
    # 2.1 mm are exactly three voxels.
    for radius_mm in (1.2, 2.1, 2.4):
        opened = open_label(mask, [1], radius_mm=radius_mm, spacing_mm=SPACING_MM)
        expected = ndimage.binary_opening(mask, _ball(radius_mm))
        np.testing.assert_array_equal(opened, expected)
        closed = close_label(mask, [1], radius_mm=radius_mm, spacing_mm=SPACING_MM)
        np.testing.assert_array_equal(closed, ndimage.binary_closing(mask, _ball(radius_mm)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flat_masks(axis: int) -> None:
    mask = np.moveaxis(_blob(5)[:, :, 10:11], 2, axis)
    spacing_mm = np.insert(SPACING_MM[:2], axis, 9.0).tolist()
    ball = np.moveaxis(_ball(2.0)[:, :, 0:1], 2, axis)
    opened = open_label(mask, [1], radius_mm=2.0, spacing_mm=spacing_mm)
    np.testing.assert_array_equal(opened, ndimage.binary_opening(mask, ball))
    closed = close_label(np.asfortranarray(mask), [1], radius_mm=2.0, spacing_mm=spacing_mm)
    np.testing.assert_array_equal(closed, ndimage.binary_closing(mask, ball))
    assert not np.array_equal(opened, mask)


def test_holes_equal_scipy_and_other_labels_stay() -> None:
    mask = _blob(2)
    np.testing.assert_array_equal(fill_holes(mask, [1]), ndimage.binary_fill_holes(mask))
    sliced = fill_holes(mask, [1], slice_axis=2)
    for k in range(mask.shape[2]):
        expected = ndimage.binary_fill_holes(mask[:, :, k])
        np.testing.assert_array_equal(sliced[:, :, k], expected)
    ring = np.full((5, 6, 1), 3, np.uint8)
    ring[1:4, 1:5] = 0
    ring[2, 2] = 7
    filled = fill_holes(ring, [3])
    assert (filled == 7).sum() == 1
    assert (filled == 3).sum() == 29


def test_groups_and_counts() -> None:
    row = np.array([3, 7, 0, 3, 3, 3, 0, 7, 7, 7, 7], np.uint8).reshape(11, 1, 1)
    assert keep_largest(row, [(3, 7)]).ravel().tolist() == [0] * 7 + [7] * 4
    assert keep_largest(row, [(3, 7)], count=2).ravel().tolist() == [0, 0, 0, 3, 3, 3, 0, *[7] * 4]


def test_typed_steps_by_hand() -> None:
    geometry = lopsided_geometry((11, 8, 6))
    mask = np.zeros(geometry.shape, np.uint8)
    mask[1:4, 1:4, 1:4] = 3
    mask[4, 2, 2] = mask[9, 6, 4] = 7
    volume = geometry.voxel_volume_mm3
    chain = parse_steps("inside:tumour=liver; min-volume:*=50mm3", LABELS)
    assert [step.text for step in chain] == [
        "inside:tumour=liver", "min-volume:liver=50mm3", "min-volume:tumour=50mm3",
    ]  # fmt: skip
    after, changes = apply_with_changes(mask, chain, LABELS, geometry)
    assert (after == 7).sum() == 0
    assert (after == 3).sum() == 27
    assert changes[0].removed_mm3 == {"tumour": pytest.approx(volume, abs=1e-3)}
    place = geometry.affine_ras @ [9, 6, 4, 1]
    text = "nearest:7=" + ",".join(f"{part:.3f}" for part in place[:3])
    near = apply_chain(mask, parse_steps(text, LABELS), LABELS, geometry=geometry)
    assert near[9, 6, 4] == 7
    assert near[4, 2, 2] == 0
    near = apply_chain(mask, parse_steps("nearest:7=3", LABELS), LABELS, geometry=geometry)
    assert near[9, 6, 4] == 0


def test_what_is_wrong_is_said() -> None:
    for text in ("shrink:liver", "min-volume:liver", "open:liver=much", "", "inside:liver=liver"):
        with pytest.raises(SettingsError):
            parse_steps(text, LABELS)
    with pytest.raises(LabelError, match="lung"):
        parse_steps("largest:lung", LABELS)
