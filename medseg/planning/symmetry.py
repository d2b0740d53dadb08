"""What may be mirrored: an axis along which the cases in a mirror could be cases, too."""

from __future__ import annotations

from typing import Literal

from medseg.core.labels import LabelSet, left_right_pairs
from medseg.core.plan import Fingerprint

Pairs = tuple[tuple[str, str], ...]
Axis = Literal[0, 1, 2]
# So many of the scans that show both must have the left one farther left.
_CONFIRMED = 0.9
_FEWEST_CASES = 4
# As a share of the field of view: nearer than this two places are the same.
_NEAR = 0.05
_AXES: tuple[tuple[Axis, str], ...] = (
    (0, "left to right"), (1, "back to front"), (2, "down to up"),
)  # fmt: skip


def confirmed_pairs(fingerprint: Fingerprint, labels: LabelSet) -> tuple[Pairs, str]:
    """Left and right labels by their names, kept where the scans show them so; and why.

    In RAS+ the patient's left has the lower index.
    """
    kept, doubtful, unseen = [], [], []
    for left, right in left_right_pairs(labels):
        share = fingerprint.pair_sides.get(left)
        if share is None:
            unseen.append(left)
        elif share >= _CONFIRMED:
            kept.append((left, right))
        else:
            doubtful.append(f"{left} lies left of {right} in {100 * share:.0f} % of the cases")
    told = []
    if kept:
        told.append(f"{len(kept)} by name, confirmed by where the labels lie")
    if doubtful:
        told.append(f"not {'; not '.join(doubtful)}: see medseg check")
    if unseen:
        told.append(f"never seen together with its partner: {', '.join(unseen)}")
    return tuple(kept), "; ".join(told) or "no names differ in left and right alone"


def mirror_axes(
    fingerprint: Fingerprint, labels: LabelSet, pairs: Pairs
) -> tuple[tuple[Axis, ...], str]:
    """Axes along which patches may be mirrored in training, and why.

    An axis is taken where each label, mirrored, lies where it (or, from left to right, its
    partner) lies anyway. Organs off the middle without a partner forbid it: in a mirror the
    liver would be learned on the wrong side.
    """
    places, spread = fingerprint.label_places, fingerprint.label_place_spread
    named = left_right_pairs(labels)
    if named and not pairs:
        both = f"{named[0][0]}, {named[0][1]}"
        return (), f"no mirroring: left and right are labels of their own ({both}), unconfirmed"
    if fingerprint.cases < _FEWEST_CASES or len(places) < len(labels):
        return (), "no mirroring: organs have a side, and too few cases show which have none"
    partner = dict(pairs) | {right: left for left, right in pairs}
    taken: list[Axis] = []
    told = []
    for axis, way in _AXES:
        if axis == 2 and fingerprint.two_dimensional:
            continue
        against = ""
        for name, place in places.items():
            other = partner.get(name, name) if axis == 0 else name
            gap = abs(1 - place[axis] - places[other][axis])
            if gap > max(_NEAR, spread[name][axis], spread[other][axis]):
                against = name
                break
        if against:
            told.append(f"not {way}: {against} would lie elsewhere")
        else:
            taken.append(axis)
            swap = ", pairs exchanged" if axis == 0 and pairs else ""
            told.append(f"{way}: each label lies alike in the mirror{swap}")
    return tuple(taken), "; ".join(told)
