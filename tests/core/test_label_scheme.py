"""Mask values to indices and back, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.core.label_scheme import LabelScheme
from medseg.core.labels import Label, LabelSet

MASK = np.array([[0, 1, 2], [3, 4, 9]])


def regions(*parts: tuple[str, int, tuple[int, ...]], ignore: int | None = None) -> LabelScheme:
    labels = [Label(value=v, name=n, colour=(0, 0, v), sources=s) for n, v, s in parts]
    return LabelScheme(LabelSet(labels=tuple(labels)), regions=True, ignore=ignore)


TUMOUR = regions(("whole", 1, (1, 2, 3, 4)), ("core", 2, (2, 3)), ("enhancing", 3, (3,)), ignore=9)


def test_plain_labels_are_the_classes_that_label_sets_give() -> None:
    labels = LabelSet.from_names({1: "a", 2: "b", 3: "c", 4: "d"}).regroup("x=1+2+4,y=2")
    scheme = LabelScheme(labels)
    np.testing.assert_array_equal(scheme.to_indices(MASK), labels.to_classes(MASK))
    np.testing.assert_array_equal(scheme.to_indices(MASK), [[0, 1, 2], [0, 1, 0]])
    assert (scheme.indices, scheme.ignored) == (3, None)
    np.testing.assert_array_equal(scheme.painted(scheme.to_indices(MASK)), labels.to_classes(MASK))
    np.testing.assert_array_equal(scheme.membership, [[0, 0], [1, 0], [0, 1]])


def test_voxels_to_be_ignored_have_an_index_of_their_own() -> None:
    scheme = LabelScheme(LabelSet.from_names({1: "a", 3: "b"}), ignore=9)
    indices = scheme.to_indices(MASK)
    np.testing.assert_array_equal(indices, [[0, 1, 0], [2, 0, 3]])
    assert (scheme.indices, scheme.ignored) == (4, 3)
    np.testing.assert_array_equal(scheme.painted(indices), [[0, 1, 0], [2, 0, 0]])


def test_regions_by_hand() -> None:
    # Values 1 and 4 lie in the same regions and are one cell.
    indices = TUMOUR.to_indices(MASK)
    np.testing.assert_array_equal(indices, [[0, 1, 2], [3, 1, 4]])
    assert TUMOUR.ignored == 4
    np.testing.assert_array_equal(
        TUMOUR.membership, [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]]
    )
    np.testing.assert_array_equal(TUMOUR.painted(indices), [[0, 1, 2], [3, 1, 0]])
    np.testing.assert_array_equal(TUMOUR.shown, [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]])


def test_regions_that_overlap_without_one_in_the_other() -> None:
    scheme = regions(("left part", 1, (1, 2)), ("right part", 2, (2, 3)))
    indices = scheme.to_indices(np.array([0, 1, 2, 3]))
    np.testing.assert_array_equal(scheme.membership[indices], [[0, 0], [1, 0], [1, 1], [0, 1]])
    np.testing.assert_array_equal(scheme.painted(indices), [0, 1, 2, 2])
    # A voxel painted "right part" need not be of the left one.
    np.testing.assert_array_equal(scheme.shown, [[0, 0], [1, 0], [0, 1]])


def test_known_labels_need_all_their_values() -> None:
    assert TUMOUR.known(None) is None
    assert TUMOUR.known((1, 2, 3, 4)) is None
    assert TUMOUR.known((2, 3)) == (False, True, True)
    assert LabelScheme(LabelSet.from_names({1: "a", 2: "b"})).known((2,)) == (False, True)


def test_left_and_right_are_exchanged() -> None:
    names = {1: "kidney_left", 2: "spleen", 3: "kidney_right"}
    plain = LabelScheme(LabelSet.from_names(names), ignore=7)
    pairs = [("kidney_left", "kidney_right")]
    np.testing.assert_array_equal(plain.mirrored(pairs), [0, 3, 2, 1, 4])
    np.testing.assert_array_equal(plain.mirrored([]), [0, 1, 2, 3, 4])
    scheme = regions(("left", 1, (1, 2)), ("right", 2, (3, 4)), ("tumour", 3, (2,)))
    # Cells: 1 left, 2 left with tumour, 3 and 4 right: no right tumour is known to the masks.
    np.testing.assert_array_equal(scheme.mirrored([("left", "right")]), [0, 3, -1, 1])


@pytest.mark.parametrize(
    ("labels", "ignore", "dtype"), [(255, None, np.uint8), (255, 999, np.uint16)]
)
def test_the_smallest_type_that_holds_the_indices(
    labels: int, ignore: int | None, dtype: type
) -> None:
    names = {value: f"label {value}" for value in range(1, labels + 1)}
    scheme = LabelScheme(LabelSet.from_names(names), ignore=ignore)
    assert scheme.dtype == dtype
    assert scheme.to_indices(np.array([255, 999]))[0] == 255
