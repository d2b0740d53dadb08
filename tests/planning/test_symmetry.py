"""Mirroring is taken where the mirrored cases could be cases."""

from __future__ import annotations

from medseg.core.labels import LabelSet
from medseg.core.plan import Fingerprint
from medseg.planning.symmetry import confirmed_pairs, mirror_axes
from tests.planning_facts import fingerprint

Place = tuple[float, float, float]
KIDNEYS = LabelSet.from_names({1: "kidney_left", 2: "kidney_right", 3: "spine"})


def facts(places: dict[str, Place], *, spread: float = 0.02, sides: float = 1.0) -> Fingerprint:
    return fingerprint(
        label_places=places,
        label_place_spread=dict.fromkeys(places, (spread,) * 3),
        pair_sides={"kidney_left": sides} if "kidney_left" in places else {},
    )


BODY: dict[str, Place] = {
    "kidney_left": (0.31, 0.4, 0.3), "kidney_right": (0.68, 0.41, 0.28), "spine": (0.5, 0.2, 0.5),
}  # fmt: skip


def test_paired_organs_and_middle_ones_are_mirrored_left_to_right_with_exchange() -> None:
    seen = facts(BODY)
    pairs, why = confirmed_pairs(seen, KIDNEYS)
    assert pairs == (("kidney_left", "kidney_right"),)
    assert "confirmed" in why
    axes, why = mirror_axes(seen, KIDNEYS, pairs)
    assert axes == (0,)
    assert "pairs exchanged" in why
    assert "not back to front: kidney_left" in why


def test_an_organ_off_the_middle_forbids_it() -> None:
    labels = LabelSet.from_names({1: "kidney_left", 2: "kidney_right", 3: "liver"})
    seen = facts({**{k: v for k, v in BODY.items() if k != "spine"}, "liver": (0.7, 0.5, 0.5)})
    axes, why = mirror_axes(seen, labels, confirmed_pairs(seen, labels)[0])
    assert 0 not in axes
    assert "not left to right: liver" in why


def test_sides_that_the_scans_do_not_confirm_are_not_used() -> None:
    exchanged = facts(BODY, sides=0.1)
    pairs, why = confirmed_pairs(exchanged, KIDNEYS)
    assert pairs == ()
    assert "10 % of the cases" in why
    axes, why = mirror_axes(exchanged, KIDNEYS, pairs)
    assert axes == ()
    assert "kidney_left, kidney_right" in why


def test_one_label_that_lies_anywhere_is_mirrored_along_all_axes() -> None:
    labels = LabelSet.from_names({1: "lesion"})
    seen = facts({"lesion": (0.42, 0.55, 0.5)}, spread=0.2)
    assert mirror_axes(seen, labels, ())[0] == (0, 1, 2)
    few = seen.model_copy(update={"cases": 3})
    assert mirror_axes(few, labels, ())[0] == ()
    flat = seen.model_copy(update={"two_dimensional": True})
    assert mirror_axes(flat, labels, ())[0] == (0, 1)


def test_parts_of_one_organ_in_a_row_are_not_mirrored_along_it() -> None:
    labels = LabelSet.from_names({1: "anterior", 2: "posterior"})
    seen = facts({"anterior": (0.5, 0.64, 0.46), "posterior": (0.51, 0.35, 0.55)})
    assert mirror_axes(seen, labels, ())[0] == (0,)
