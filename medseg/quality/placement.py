"""Masks that lie elsewhere than the cohort's: mirrored, shifted, left and right exchanged.

Places are compared in body coordinates: shares of the way through the body along right,
front and up, so that scans of other sizes and orientations can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from medseg.core.labels import left_right_pairs
from medseg.datasets.dataset import Case, Dataset
from medseg.quality.evidence import fits_better, mirrored, shifted
from medseg.quality.finding import Finding
from medseg.quality.observe import Observation
from medseg.quality.outliers import FEWEST

# Far enough to ask the scan itself, which decides.
_SUSPECT = 3.0
_FITS = 2.0
_FLOOR = 0.03
_AXES = ("left to right", "back to front", "upside down")
_WAYS = (("left", "right"), ("back", "front"), ("down", "up"))


def find_misplaced(dataset: Dataset, seen: Sequence[Observation]) -> list[Finding]:
    """Mirrored and shifted masks, and exchanged sides.

    The cohort makes a case suspect; a finding is made where the mask fits its own scan
    better when it is put where the cohort has it.
    """
    placed = [one for one in seen if one.labels and one.body is not None]
    moved = _moved(dataset, placed)
    told = {finding.case for finding in moved}
    sides = [f for f in _exchanged_sides(dataset, placed) if f.case not in told]
    return [*moved, *sides]


def _moved(dataset: Dataset, seen: Sequence[Observation]) -> list[Finding]:
    if len(seen) < FEWEST:
        return []
    places = _body_places(dataset, seen)
    known = np.isfinite(places[..., 0]).sum(axis=0) >= FEWEST
    if not known.any():
        return []
    places = places[:, known]
    values = np.asarray(dataset.labels.values)[known]
    middle = np.nanmedian(places, axis=0)
    spread = np.maximum(1.4826 * np.nanmedian(np.abs(places - middle), axis=0), _FLOOR)
    cases = {case.id: case for case in dataset.cases}
    found = []
    for one, own in zip(seen, places, strict=True):
        there = np.isfinite(own[:, 0])
        if not there.any():
            continue
        suspicion = _Suspicion(one, own[there], middle[there], spread[there])
        told = suspicion.mirrored(cases[one.case]) or suspicion.shifted(cases[one.case])
        if told is not None:
            kind, text, cure = told
            # One structure in one slice is little to go by.
            sure = there.sum() > 1 and one.shape is not None and one.shape[2] > 1
            found.append(
                Finding(
                    kind, "error" if sure else "warning", one.case,
                    "the mask on its structures, as in the other cases",
                    text, cure, tuple(int(v) for v in values[there]),
                )
            )  # fmt: skip
    return found


@dataclass(frozen=True)
class _Suspicion:
    """Where the labels of a case lie, and where the cohort has them: (labels, 3) each."""

    one: Observation
    own: NDArray[np.float64]
    middle: NDArray[np.float64]
    spread: NDArray[np.float64]

    def mirrored(self, case: Case) -> tuple[str, str, str] | None:
        far = self._far(self.own)
        turned_far = self._far(_mirror(self.one, self.own))
        for axis in np.argsort(-far):
            closer = turned_far[axis] < _FITS and turned_far[axis] < 0.5 * far[axis]
            if far[axis] <= _SUSPECT or not closer:
                continue
            if fits_better(case, partial(mirrored, axis=int(axis))):
                return (
                    "mask-flipped",
                    f"a mask that fits its scan when mirrored {_AXES[axis]}",
                    "Mirror the mask, or correct its header.",
                )
        return None

    def shifted(self, case: Case) -> tuple[str, str, str] | None:
        if self._far(self.own).max() <= _SUSPECT or self.one.shape is None:
            return None
        assert self.one.body is not None
        low, high = self.one.body
        off = np.median(self.own - self.middle, axis=0) * (high - low)
        steps = [
            -round(float(share) * side) for share, side in zip(off, self.one.shape, strict=True)
        ]
        if not any(steps):
            return None
        move = partial(shifted, steps=(steps[0], steps[1], steps[2]))
        if not fits_better(case, move):
            return None
        axis = int(np.argmax(np.abs(off)))
        return (
            "mask-shifted",
            f"it about {abs(steps[axis])} voxels too far {_WAYS[axis][int(off[axis] > 0)]}",
            "Correct the origin in the header that is wrong, or draw the mask again.",
        )

    def _far(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Robust standard deviations from the cohort along each axis, (3,)."""
        return np.asarray(np.median(np.abs((places - self.middle) / self.spread), axis=0))


def _body_places(dataset: Dataset, seen: Sequence[Observation]) -> NDArray[np.float64]:
    """(cases, labels, 3) centroids in body coordinates; NaN where there is no such label."""
    places = np.full((len(seen), len(dataset.labels), 3), np.nan)
    for row, one in enumerate(seen):
        assert one.body is not None
        low, high = one.body
        for column, value in enumerate(dataset.labels.values):
            if value in one.labels:
                places[row, column] = (np.array(one.labels[value].place) - low) / (high - low)
    return places


def _mirror(one: Observation, own: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the places would be were the mask's array mirrored in the field of view."""
    assert one.body is not None
    low, high = one.body
    return np.asarray((1 - (own * (high - low) + low) - low) / (high - low))


def _exchanged_sides(dataset: Dataset, seen: Sequence[Observation]) -> list[Finding]:
    """Left structures on the right of their partners. A picture's sides are not known."""
    value_of = dict(zip(dataset.labels.names, dataset.labels.values, strict=True))
    pairs = [(value_of[a], value_of[b]) for a, b in left_right_pairs(dataset.labels)]
    wrong: dict[str, list[tuple[int, int]]] = {}
    shown = 0
    for one in seen:
        both = [p for p in pairs if p[0] in one.labels and p[1] in one.labels]
        if not both or (one.shape or (0, 0, 1))[2] == 1:
            continue
        shown += 1
        bad = [p for p in both if one.labels[p[0]].place[0] > one.labels[p[1]].place[0]]
        if len(bad) * 2 > len(both) or (bad and len(both) <= 2):
            wrong[one.case] = bad
    if shown and len(wrong) * 2 > shown and shown > 1:
        return [
            Finding(
                "sides-exchanged", "error", "", "left structures on the patient's left",
                f"them on the right in {len(wrong)} of {shown} cases",
                "Look whether the names are exchanged, or the headers state wrong axes.",
                others=tuple(wrong),
            )
        ]  # fmt: skip
    name_of = {value: name for name, value in value_of.items()}
    return [
        Finding(
            "sides-exchanged", "error", case,
            f"{name_of[bad[0][0]]} on the left of {name_of[bad[0][1]]}", "it on the right",
            "Exchange the values of the two, or correct the header.",
            tuple(value for pair in bad for value in pair),
        )
        for case, bad in wrong.items()
    ]  # fmt: skip
