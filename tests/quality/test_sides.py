"""Paired organs on the sides that their names say, whatever the orientation of the mask."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.core.geometry import ALL_ORIENTATIONS, Geometry
from medseg.core.labels import LabelSet
from medseg.quality.sides import Sides, side_warnings
from tests.phantoms import oblique_affine

LABELS = LabelSet.from_names({1: "liver", 2: "kidney_left", 7: "kidney_right"})


def kidneys(left: int = 2, right: int = 7) -> tuple[np.ndarray, Geometry]:
    """In RAS+ order: the left one at low i, since i runs to the right."""
    mask = np.zeros((30, 14, 9), np.uint8)
    mask[3:9, 4:10, 2:6] = left
    mask[20:27, 5:11, 3:7] = right
    mask[12:25, 2:4, 1:3] = 1
    return mask, Geometry(mask.shape, oblique_affine((1.5, 2.0, 3.5)))


def test_sound_masks_are_quiet_in_any_orientation() -> None:
    mask, geometry = kidneys()
    for orientation in ALL_ORIENTATIONS:
        turned = np.ascontiguousarray(orientation.apply(mask))
        assert side_warnings(turned, geometry.reoriented(orientation), LABELS) == []


@pytest.mark.parametrize("orientation", ALL_ORIENTATIONS[::7])
def test_swapped_names_are_told(orientation: object) -> None:
    mask, geometry = kidneys(left=7, right=2)
    turned = orientation.apply(mask)  # type: ignore[attr-defined]
    found = side_warnings(turned, geometry.reoriented(orientation), LABELS)  # type: ignore[arg-type]
    assert found == ["kidney_left lies to the right of kidney_right: sides may be swapped"]


def test_part_of_one_on_the_other_side_is_told() -> None:
    mask, geometry = kidneys()
    mask[20:27, 5:11, 3:5] = 2  # 84 of 84 + 144 voxels
    assert side_warnings(mask, geometry, LABELS) == [
        "37 % of kidney_left lie on the side of kidney_right"
    ]


def test_slabs_count_as_the_whole() -> None:
    for orientation in ALL_ORIENTATIONS[::11]:
        mask, geometry = kidneys(left=7, right=2)
        mask, geometry = orientation.apply(mask), geometry.reoriented(orientation)
        sides = Sides(geometry, LABELS)
        for start in range(0, mask.shape[2], 4):
            sides.add(mask[..., start : start + 4], start)
        assert sides.warnings() == side_warnings(mask, geometry, LABELS) != []


def test_nothing_is_told_of_pictures_single_kidneys_and_labels_without_pairs() -> None:
    mask, geometry = kidneys(left=7, right=2)
    flat = Geometry((30, 14, 1), geometry.affine_ras)
    assert side_warnings(mask[..., 4:5], flat, LABELS) == []
    assert side_warnings(np.where(mask == 2, 0, mask), geometry, LABELS) == []
    plain = LabelSet.from_names({1: "liver", 2: "spleen"})
    assert side_warnings(mask, geometry, plain) == []
