"""Masks that lie elsewhere than the cohort's: mirrored, shifted, left and right exchanged.

Places are compared in body coordinates: shares of the way through the body along right,
front and up, so that scans of other sizes and orientations can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.core.labels import left_right_pairs
from medseg.datasets.dataset import Dataset
from medseg.quality.finding import Finding
from medseg.quality.observe import Observation
from medseg.quality.outliers import FEWEST

_FAR = 6.0
_MIRRORED_FAR = 4.0
_FLOOR = 0.03
_AXES = ("left to right", "back to front", "upside down")


def find_misplaced(dataset: Dataset, seen: Sequence[Observation]) -> list[Finding]:
    """Mirrored and shifted masks, and exchanged sides."""
    placed = [one for one in seen if one.labels and one.body is not None]
    mirrored = _mirrored(dataset, placed)
    told = {finding.case for finding in mirrored if finding.kind == "mask-flipped"}
    sides = [f for f in _exchanged_sides(dataset, placed) if f.case not in told]
    told |= {finding.case for finding in sides}
    shifted = [f for f in mirrored if f.kind == "mask-flipped" or f.case not in told]
    return [*shifted, *sides]


def _mirrored(dataset: Dataset, seen: Sequence[Observation]) -> list[Finding]:
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
    found = []
    for one, own in zip(seen, places, strict=True):
        there = np.isfinite(own[:, 0])
        if not there.any():
            continue
        finding = _judge(one, own[there], middle[there], spread=spread[there])
        if finding is not None:
            kind, text, cure = finding
            found.append(
                Finding(
                    kind, "warning", one.case, "the mask where it lies in the other cases",
                    text, cure, tuple(int(v) for v in values[there]),
                )
            )  # fmt: skip
    return found


def _judge(
    one: Observation,
    own: NDArray[np.float64],
    middle: NDArray[np.float64],
    *,
    spread: NDArray[np.float64],
) -> tuple[str, str, str] | None:
    """Whether the labels' places (labels, 3) fit the cohort: (kind, words, cure) if not."""
    away = (own - middle) / spread
    far = np.median(np.abs(away), axis=0)
    turned = (_mirror(one, own) - middle) / spread
    turned_far = np.median(np.abs(turned), axis=0)
    for axis in range(3):
        fits = turned_far[axis] < 2.0 and turned_far[axis] < 0.4 * far[axis]
        if far[axis] > _MIRRORED_FAR and fits and np.delete(far, axis).max() < _FAR:
            return (
                "mask-flipped",
                f"a mask that fits the others when mirrored {_AXES[axis]}",
                "Compare mask and scan; mirror the mask, or correct the header.",
            )
    if far.max() > _FAR and np.abs(np.median(away, axis=0)).max() > _FAR:
        axis = int(np.argmax(far))
        percent = 100 * float(np.median(own[:, axis] - middle[:, axis]))
        return (
            "mask-shifted",
            f"{abs(percent):.0f} % of the body's extent further "
            f"{(('left', 'right'), ('back', 'front'), ('down', 'up'))[axis][int(percent > 0)]}",
            "Compare mask and scan; correct the origin in the header that is wrong.",
        )
    return None


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
