"""Faults of a first stage's labels: against SciPy's binary morphology, and what must stay."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from medseg.transforms.augment_earlier import EarlierFaults, draw_faults, with_faults


def labels() -> NDArray[np.uint8]:
    """Two labels in a lopsided volume, well within it; the first in two parts."""
    made = np.zeros((17, 14, 11), np.uint8)
    made[4:9, 4:8, 4:8] = 1
    made[11:12, 4:6, 4:6] = 1
    made[9:11, 4:10, 4:7] = 2
    return made


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("grown", [ndimage.binary_dilation]),
        ("shrunk", [ndimage.binary_erosion]),
        ("opened", [ndimage.binary_erosion, ndimage.binary_dilation]),
        ("closed", [ndimage.binary_dilation, ndimage.binary_erosion]),
    ],
)
def test_a_border_moves_as_binary_morphology_moves_it(kind: str, steps: list[object]) -> None:
    before = labels()
    kept = before.copy()
    after = with_faults(before, EarlierFaults(moves=((1, kind, 1),)))
    box = np.ones((3, 3, 3), bool)
    expected = before == 1
    for step in steps:
        expected = step(expected, box)  # type: ignore[operator]
    assert np.array_equal(after == 1, expected)
    # The other label gives way to what has grown, and nothing else happens to it.
    assert np.array_equal(after == 2, (before == 2) & ~expected)
    assert np.array_equal(before, kept)


def test_one_small_part_is_lost() -> None:
    before = labels()
    gone = [with_faults(before, EarlierFaults(lost=((1, which),))) for which in (0.1, 0.9)]
    sizes = sorted(int((before == 1).sum() - (after == 1).sum()) for after in gone)
    assert sizes == [1 * 2 * 2, 5 * 4 * 4]
    assert all(np.array_equal(after == 2, before == 2) for after in gone)
    # What fills more of the patch than a stage would miss stays.
    large = np.zeros((10, 6, 5), np.uint8)
    large[:5] = 1
    assert np.array_equal(with_faults(large, EarlierFaults(lost=((1, 0.5),))), large)


def test_single_slices_stay_apart_and_absent_labels_are_passed_over() -> None:
    flat = labels()[:, :, 5:6]
    after = with_faults(flat, EarlierFaults(moves=((1, "shrunk", 1), (3, "grown", 4))))
    expected = ndimage.binary_erosion(flat[..., 0] == 1, np.ones((3, 3), bool))
    assert np.array_equal(after[..., 0] == 1, expected)


def test_what_reaches_the_border_of_the_patch_goes_on_beyond_it() -> None:
    filled = np.full((6, 5, 4), 2, np.uint8)
    assert (with_faults(filled, EarlierFaults(moves=((2, "shrunk", 3),))) == 2).all()


def test_chance_is_a_function_of_the_seed_and_as_often_as_said() -> None:
    drawn = [draw_faults(np.random.default_rng([7, n]), 3) for n in range(2000)]
    assert drawn[:5] == [draw_faults(np.random.default_rng([7, n]), 3) for n in range(5)]
    moved = [one for one in drawn if one.moves]
    assert np.mean([bool(one.moves) for one in drawn]) == pytest.approx(0.4, abs=0.04)
    assert np.mean([bool(one.lost) for one in drawn]) == pytest.approx(0.2, abs=0.04)
    assert {kind for one in moved for _, kind, _ in one.moves} == {
        "grown", "shrunk", "opened", "closed",
    }  # fmt: skip
    assert {n for one in moved for _, _, n in one.moves} == set(range(1, 9))
    assert all(sorted(label for label, _, _ in one.moves) == [1, 2, 3] for one in moved)
