"""Surface distances by hand, against MONAI, MedPy and surface-distance, on unequal spacing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from medpy.metric import binary
from monai.metrics import (
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from numpy.typing import NDArray
from scipy import ndimage
from surface_distance import metrics as elements

from medseg.core.errors import GeometryError
from medseg.evaluation.surface import (
    SurfaceDistances,
    assd,
    hd,
    hd95,
    label_surface_distances,
    nsd,
    surface_distances,
)

SPACING_MM = (0.8, 1.5, 3.0)


def _measure(
    prediction: NDArray[Any], reference: NDArray[Any], spacing_mm: tuple[float, ...] = SPACING_MM
) -> SurfaceDistances:
    found = surface_distances(prediction > 0, reference > 0, spacing_mm=spacing_mm)
    assert found is not None
    return found


def _blob(shape: tuple[int, ...], seed: int) -> NDArray[np.bool_]:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return np.asarray(noise > np.percentile(noise, 75))


def test_two_voxels_by_hand() -> None:
    masks = np.zeros((2, 9, 8, 7), dtype=np.uint8)
    masks[0, 1, 2, 3] = masks[1, 4, 2, 5] = 1
    distances = _measure(*masks)
    # 3 steps of 0.8 mm and 2 of 3 mm: sqrt(2.4^2 + 6^2)
    assert distances.to_reference_mm.tolist() == pytest.approx([41.76**0.5])
    assert hd95(distances) == pytest.approx(41.76**0.5)
    assert nsd(distances, 6.4) == 0.0
    assert nsd(distances, 6.5) == 1.0


def test_shifted_box_by_hand() -> None:
    masks = np.zeros((2, 12, 9, 8), dtype=np.uint8)
    masks[0, 2:6, 2:7, 2:6] = 1
    masks[1, 3:7, 2:7, 2:6] = 1
    distances = _measure(*masks)
    # 4 x 5 x 4 voxels, 2 x 3 x 2 of them inside: a border of 68. The face that sticks out
    # (20 voxels) is one step (0.8 mm) away from the other box. On the two side faces and
    # top and bottom the borders coincide. On the far face the 3 x 2 voxels that are inside
    # the other box are nearest to its border one step along i.
    assert len(distances.to_reference_mm) == 68
    found, counts = np.unique(distances.to_reference_mm.round(6), return_counts=True)
    assert found.tolist() == [0.0, 0.8]
    assert counts.tolist() == [42, 26]
    assert nsd(distances, 0.5) == pytest.approx(42 / 68)
    assert nsd(distances, 0.8) == 1.0
    assert hd95(distances) == pytest.approx(0.8)


def test_the_edge_of_the_image_is_outside() -> None:
    full = np.ones((5, 4, 3), dtype=np.uint8)
    # 5 x 4 x 3 voxels, 3 x 2 x 1 of them inside.
    assert len(_measure(full, full).to_reference_mm) == 60 - 6


def test_a_flat_image_has_a_border_in_its_plane() -> None:
    disc = np.zeros((9, 8, 1), dtype=np.uint8)
    disc[2:7, 2:6] = 1
    assert len(_measure(disc, disc).to_reference_mm) == 20 - 6
    assert len(_measure(disc.swapaxes(0, 2), disc.swapaxes(0, 2)).to_reference_mm) == 20 - 6
    # The same disc in a volume is all border: each voxel has a neighbour above.
    slab = np.concatenate([disc, np.zeros_like(disc)], axis=2)
    assert len(_measure(slab, slab).to_reference_mm) == 20
    (found,) = label_surface_distances(slab, slab, [1], spacing_mm=SPACING_MM)
    assert found[1] is not None
    assert len(found[1].to_reference_mm) == 20


@pytest.mark.parametrize("shape", [(24, 17, 11), (30, 21, 1)])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_against_monai(shape: tuple[int, int, int], seed: int) -> None:
    prediction, reference = _blob(shape, seed), _blob(shape, seed) | _blob(shape, seed + 10)
    dims = 3 if shape[2] > 1 else 2
    hot = [
        torch.from_numpy(mask.reshape(shape[:dims])[None, None].astype(np.float32))
        for mask in (prediction, reference)
    ]
    spacing_mm = list(SPACING_MM[:dims])
    distances = _measure(prediction, reference)
    expected = compute_hausdorff_distance(
        *hot, include_background=True, percentile=95, spacing=spacing_mm
    )
    assert hd95(distances) == pytest.approx(float(expected), rel=1e-5)
    expected = compute_hausdorff_distance(*hot, include_background=True, spacing=spacing_mm)
    assert hd(distances) == pytest.approx(float(expected), rel=1e-5)
    expected = compute_average_surface_distance(
        *hot, include_background=True, symmetric=True, spacing=spacing_mm
    )
    assert assd(distances) == pytest.approx(float(expected), rel=1e-5)
    for tolerance_mm in (0.5, 1.55, 2.7):
        expected = compute_surface_dice(
            *hot, class_thresholds=[tolerance_mm], include_background=True, spacing=spacing_mm
        )
        assert nsd(distances, tolerance_mm) == pytest.approx(float(expected), rel=1e-5)


def test_against_medpy() -> None:
    prediction, reference = _blob((24, 17, 11), 4), _blob((24, 17, 11), 5)
    distances = _measure(prediction, reference)
    expected = binary.hd(prediction, reference, SPACING_MM)
    assert hd(distances) == pytest.approx(expected, rel=1e-6)
    expected = binary.assd(prediction, reference, SPACING_MM)
    assert assd(distances) == pytest.approx(expected, rel=1e-6)


def _pairs(shape: tuple[int, int, int]) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    rng = np.random.default_rng(9)
    yield _blob(shape, 0), _blob(shape, 1)
    yield _blob(shape, 0), np.roll(_blob(shape, 0), 1, axis=1)
    for share in (0.02, 0.5, 0.95):
        yield rng.random(shape) < share, rng.random(shape) < share
    full, one = np.ones(shape, dtype=bool), np.zeros(shape, dtype=bool)
    one[0, -1, 0] = True
    yield from ((full, one), (one, full), (full, full), (one, one))


@pytest.mark.parametrize("shape", [(24, 17, 11), (30, 21, 1)])
@pytest.mark.filterwarnings("ignore:.*scipy.ndimage.*:DeprecationWarning")
def test_against_surface_distance(shape: tuple[int, int, int]) -> None:
    dims = 3 if shape[2] > 1 else 2
    for prediction, reference in _pairs(shape):
        expected = elements.compute_surface_distances(
            reference.reshape(shape[:dims]), prediction.reshape(shape[:dims]), SPACING_MM[:dims]
        )
        found = surface_distances(
            prediction, reference, spacing_mm=SPACING_MM, definition="surface-element"
        )
        assert found is not None
        for share, figure in ((95, hd95(found)), (100, hd(found))):
            theirs = elements.compute_robust_hausdorff(expected, share)
            assert figure == pytest.approx(theirs, rel=1e-6)
        for tolerance_mm in (0.0, 0.5, 1.55, 2.7):
            theirs = elements.compute_surface_dice_at_tolerance(expected, tolerance_mm)
            assert nsd(found, tolerance_mm) == pytest.approx(theirs, rel=1e-9)
        directed = elements.compute_average_surface_distance(expected)
        sizes = expected["surfel_areas_gt"].sum(), expected["surfel_areas_pred"].sum()
        assert assd(found) == pytest.approx(np.average(directed, weights=sizes), rel=1e-6)


def test_elements_of_a_shifted_box_by_hand() -> None:
    masks = np.zeros((2, 12, 9, 8), dtype=bool)
    masks[0, 2:6, 2:7, 2:6], masks[1, 3:7, 2:7, 2:6] = True, True
    found = surface_distances(*masks, spacing_mm=(1.0, 1.0, 1.0), definition="surface-element")
    assert found is not None
    # Flat parts of the faces 2 (4 x 3 + 3 x 3 + 4 x 3), along the 12 edges (of 3, 4 and 3
    # cells, four each) half the square root of 2, at the 8 corners a triangle.
    size = 2 * 33 + 4 * 10 * 0.5**0.5 + 8 * 3**0.5 / 8
    assert found.prediction_sizes is not None
    assert found.prediction_sizes.sum() == pytest.approx(size)
    assert hd(found) == hd95(found) == 1.0
    # The far ends are off: an end is 4 x 3 flat cells, 2 x (4 + 3) cells of its edges, 4
    # corners; on the other end the cells of the box that the other one has inside.
    assert nsd(found, 1.0) == 1.0
    assert 0.5 < nsd(found, 0.5) < 0.8


def test_labels_in_one_go_equal_labels_one_by_one() -> None:
    shape = (21, 16, 9)
    prediction, reference = np.zeros(shape, dtype=np.uint16), np.zeros(shape, dtype=np.int32)
    for value, seed in ((1, 0), (5, 1), (300, 2)):
        prediction[_blob(shape, seed)] = value
        reference[np.roll(_blob(shape, seed), 1, axis=0)] = value
    prediction[0, 0, 0], reference[1, 1, 1] = 9, 8
    found = dict(
        label_surface_distances(prediction, reference, [1, 5, 300, 8, 9], spacing_mm=SPACING_MM)
    )
    assert found[8] is None
    assert found[9] is None
    for value in (1, 5, 300):
        expected = _measure(prediction == value, reference == value)
        one = found[value]
        assert one is not None
        np.testing.assert_allclose(one.to_reference_mm, expected.to_reference_mm)
        np.testing.assert_allclose(one.to_prediction_mm, expected.to_prediction_mm)


def test_equal_masks_and_empty_masks() -> None:
    mask = _blob((9, 8, 7), 0)
    distances = _measure(mask, mask)
    assert hd95(distances) == 0.0
    assert nsd(distances, 0.0) == 1.0
    assert surface_distances(mask, np.zeros_like(mask), spacing_mm=SPACING_MM) is None
    one = np.ones((1, 1, 1), dtype=bool)
    assert hd95(_measure(one, one)) == 0.0


def test_a_distance_of_exactly_the_tolerance_counts() -> None:
    masks = np.zeros((2, 4, 1, 1), dtype=np.uint8)
    masks[0, 0], masks[1, 3] = 1, 1
    spacing_mm = (float(np.float32(0.1)), 1.0, 1.0)
    assert nsd(_measure(*masks, spacing_mm), 0.3) == 1.0
    assert nsd(_measure(*masks, spacing_mm), 0.29) == 0.0


def test_shapes_must_agree() -> None:
    mask = np.zeros((3, 4, 5), dtype=bool)
    with pytest.raises(GeometryError, match=r"\(3, 4, 5\)"):
        surface_distances(mask[:2], mask, spacing_mm=SPACING_MM)
