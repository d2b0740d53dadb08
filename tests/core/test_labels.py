from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medseg.core.errors import LabelError
from medseg.core.labels import LabelSet, left_right_pairs, palette_colour

ORGANS = LabelSet.from_names({0: "background", 5: "Spleen", 2: "liver", 9: "tumour"})


def test_order_names_and_colours() -> None:
    assert ORGANS.values == (2, 5, 9)
    assert ORGANS.names == ("liver", "Spleen", "tumour")
    assert len(ORGANS) == 3
    assert ORGANS.labels[0].colour == palette_colour(0)
    assert len({palette_colour(n) for n in range(30)}) == 30


def test_smallest_type() -> None:
    assert LabelSet.from_names({255: "a"}).dtype == np.uint8
    assert LabelSet.from_names({256: "a"}).dtype == np.uint16


@pytest.mark.parametrize("names", [{}, {0: "background"}, {1: "a", 2: "a"}])
def test_sets_that_say_too_little(names: dict[int, str]) -> None:
    with pytest.raises(LabelError):
        LabelSet.from_names(names)


def test_sets_that_contradict_themselves() -> None:
    label = ORGANS.labels[0]
    with pytest.raises(ValidationError, match="share a value"):
        LabelSet(labels=(label, label))
    with pytest.raises(ValidationError):
        LabelSet.model_validate({"labels": [], "more": 1})


def test_names_without_regard_to_case() -> None:
    assert ORGANS.named("spleen").value == 5
    with pytest.raises(LabelError, match="one of liver, Spleen, tumour"):
        ORGANS.named("lung")
    both = LabelSet.from_names({1: "GTV", 2: "gtv"})
    assert both.named("gtv").value == 2


@given(st.lists(st.integers(0, 3), min_size=1, max_size=50))
def test_classes_and_values_are_inverse(classes: list[int]) -> None:
    array = np.array(classes, dtype=np.uint8)
    values = ORGANS.to_values(array)
    assert values.dtype == np.uint8
    assert np.array_equal(values, np.array([0, 2, 5, 9])[array])
    assert np.array_equal(ORGANS.to_classes(values), array)


def test_unnamed_values_become_background() -> None:
    mask = np.array([[0, 2, 3], [5, 9, 400]], dtype=np.int32)
    assert ORGANS.to_classes(mask).tolist() == [[0, 1, 0], [2, 3, 0]]


def test_regroup_by_worked_example() -> None:
    merged = ORGANS.regroup("liver=2+9, lesion=tumour")
    assert merged.names == ("liver", "lesion")
    assert merged.values == (1, 2)
    # The lesion is painted over the liver that unites both.
    assert merged.to_classes(np.array([2, 5, 9])).tolist() == [1, 0, 2]
    reverse = ORGANS.regroup("lesion=9,liver=2+9")
    assert reverse.to_classes(np.array([2, 5, 9])).tolist() == [2, 0, 2]


def test_regroup_of_a_merged_set_reaches_the_first_sources() -> None:
    again = ORGANS.regroup("abdomen=2+5,tumour=9").regroup("all=abdomen+2")
    assert again.to_classes(np.array([2, 5, 9, 1])).tolist() == [1, 1, 1, 0]


def test_selection_keeps_values() -> None:
    some = ORGANS.regroup("tumour, liver")
    assert some.values == (2, 9)


def test_labels_are_united_under_both_names_and_renamed() -> None:
    united = ORGANS.regroup("liver+tumour,5")
    assert united.names[0] == "liver+tumour"
    assert united.labels[0].sources == (2, 9)
    assert united.values == (1, 2)
    assert ORGANS.regroup("hepar=liver").names == ("hepar",)
    with pytest.raises(LabelError, match=r"A new name comes first: hepar=liver\."):
        ORGANS.regroup("liver=hepar")
    plus = LabelSet.from_names({1: "a+b", 2: "a"})
    assert plus.regroup("a+b").values == (1,)
    assert plus.regroup("a+b, x=a").labels[0].sources == (1,)


@pytest.mark.parametrize("text", ["", " , ", "a=2,a=5", "a=3", "lung", "a=2+lung"])
def test_regroup_that_makes_no_sense(text: str) -> None:
    with pytest.raises(LabelError):
        ORGANS.regroup(text)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("kidney_left", "kidney_right", "liver"), (("kidney_left", "kidney_right"),)),
        (("R lung", "L lung"), (("L lung", "R lung"),)),
        (("LeftAmygdala", "RightAmygdala"), (("LeftAmygdala", "RightAmygdala"),)),
        (("left_rib_1", "right_rib_2"), ()),
        (("left atrium", "aorta"), ()),
    ],
)
def test_left_right_pairs(names: tuple[str, ...], pairs: tuple[tuple[str, str], ...]) -> None:
    labels = LabelSet.from_names(dict(enumerate(names, start=1)))
    assert left_right_pairs(labels) == pairs
