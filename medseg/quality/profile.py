"""Learn what normal looks like from training cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.core.labels import LabelSet
from medseg.core.profile import LabelProfile, Profile, Usual
from medseg.quality.features import CaseLook, Scale

# Fewer values tell nothing of what is usual.
_FEWEST = 5
# Where most cases show a label cut off, its figures are those of what can be seen of it.
MOSTLY_CUT = 0.5
_NEIGHBOURS = 6
# The least spread of a figure, by the first word or words of its name: equal values in training
# do not make any other an outlier. Logarithms, shares, or what is said.
_FLOORS = (
    ("volume", 0.1), ("sphericity", 0.03), ("parts", 0.5), ("stray share", 0.01),
    ("elongation", 0.04), ("flatness", 0.04), ("fullness", 0.04),
    ("left to right spacing", 0.05), ("back to front spacing", 0.05), ("down to up spacing", 0.05),
    ("left to right field", 0.1), ("back to front field", 0.1), ("down to up field", 0.1),
    ("left to right place", 0.02), ("back to front place", 0.02), ("range", 0.3),
)  # fmt: skip
_RELATIVE_FLOOR, _ABSOLUTE_FLOOR = 0.02, 8.0
_OFFSET_FLOOR_MM = 1.5


def learn_profile(looks: Sequence[CaseLook], labels: LabelSet, scale: Scale) -> Profile:
    """What is usual in training cases.

    Args:
        looks: At reference masks and their scans; one at least.
        labels: Of the model.
        scale: How their intensities were compared.
    """
    return Profile(
        cases=len(looks),
        absolute=scale.absolute,
        labels={name: _label(looks, name, scale) for name in labels.names},
        scan=_usual([look.scan for look in looks], scale),
        axis_codes=tuple(sorted({look.axis_codes for look in looks} - {""})),
    )


def _label(looks: Sequence[CaseLook], name: str, scale: Scale) -> LabelProfile:
    seen = [look for look in looks if name in look.labels and name not in look.unknown]
    if not seen:
        return LabelProfile(seen_share=0.0, cut_share=0.0)
    cut_share = sum(bool(look.labels[name].cut_at) for look in seen) / len(seen)
    whole = [look for look in seen if cut_share > MOSTLY_CUT or not look.labels[name].cut_at]
    return LabelProfile(
        seen_share=len(seen) / sum(name not in look.unknown for look in looks),
        cut_share=cut_share,
        figures=_usual([look.labels[name].figures for look in whole], scale),
        offsets_mm=_offsets(whole, name),
    )


def _offsets(looks: Sequence[CaseLook], name: str) -> dict[str, tuple[Usual, Usual, Usual]]:
    """From the centres of the labels that lie most steadily beside this one."""
    others = sorted({other for look in looks for other in look.labels} - {name})
    found = []
    for other in others:
        rows = [offset_mm(look, name, other) for look in looks]
        values = np.array([row for row in rows if row is not None]).reshape(-1, 3)
        a, b, c = (usual(values[:, axis], _OFFSET_FLOOR_MM) for axis in range(3))
        if a is not None and b is not None and c is not None:
            found.append((a.spread + b.spread + c.spread, other, (a, b, c)))
    return {other: three for _, other, three in sorted(found)[:_NEIGHBOURS]}


def offset_mm(look: CaseLook, name: str, other: str) -> NDArray[np.float64] | None:
    """(3,) from the centre of another label to that of one, along R, A and S.

    None where one is not there or the other is cut off.
    """
    mine, its = look.labels.get(name), look.labels.get(other)
    if mine is None or its is None or its.cut_at:
        return None
    return np.subtract(mine.centre_mm, its.centre_mm)


def _usual(figures: Sequence[dict[str, float]], scale: Scale) -> dict[str, Usual]:
    names = dict.fromkeys(name for one in figures for name in one)
    found = {}
    for name in names:
        values = np.array([one[name] for one in figures if name in one])
        known = usual(values, _floor(name, scale))
        if known is not None:
            found[name] = known
    return found


def _floor(name: str, scale: Scale) -> float:
    for start, floor in _FLOORS:
        if name.startswith(start):
            return floor
    channel = next((int(word) for word in name.split() if word.isdigit()), 0)
    absolute = channel < len(scale.absolute) and scale.absolute[channel]
    return _ABSOLUTE_FLOOR if absolute else _RELATIVE_FLOOR


def usual(values: Iterable[float] | NDArray[np.float64], floor: float) -> Usual | None:
    """Median and robust standard deviation; None of too few values.

    The larger of 1.4826 times the median absolute deviation (B. Iglewicz, D. Hoaglin, "How to
    detect and handle outliers", 1993) and what the 5 % and 95 % quantiles of a normal
    distribution lie apart: figures of organs often have two humps or a long tail.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if known.size < _FEWEST:
        return None
    middle = float(np.median(known))
    deviation = 1.4826 * float(np.median(np.abs(known - middle)))
    low, high = np.quantile(known, [0.05, 0.95])
    return Usual(middle=middle, spread=max(deviation, float(high - low) / 3.29, floor))
