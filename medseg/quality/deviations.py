"""How far a mask lies from what is usual, in robust standard deviations of its model's training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from medseg.core.profile import LabelProfile, Profile
from medseg.inference.confidence import Sureness
from medseg.quality.features import CaseLook, Figures
from medseg.quality.profile import MOSTLY_CUT, offset_mm

# Figures of the part that can be seen, which a cut leaves as they are.
_BY_CHANNEL = ("mean", "spread", "dark end", "bright end", "contrast", "edge")
_FAR = 30.0
_LEAST_CHANCE = 0.003
#: Inputs that tell of the network that made a mask.
SURENESS = ("promised Dice", "sure inside", "found")
AXES = ("left to right", "back to front", "down to up")


@dataclass(frozen=True)
class LabelDeviations:
    """Of one label of one mask.

    Attributes:
        figures: By name, signed.
        offsets: From other labels, along R, A and S, signed.
        cut_at: Sides where it is cut off although training masks rarely are.
    """

    figures: Figures
    offsets: dict[str, tuple[float, float, float]]
    cut_at: str = ""


def deviations_of(look: CaseLook, name: str, profile: Profile) -> LabelDeviations:
    """Deviations of a label that a mask shows; those of shape and place only where it is whole."""
    known, mine = profile.labels[name], look.labels[name]
    cut = bool(mine.cut_at) and known.cut_share <= MOSTLY_CUT
    figures = {
        figure: _bounded(usual.deviation(mine.figures[figure]))
        for figure, usual in known.figures.items()
        if figure in mine.figures and (not cut or figure.startswith(_BY_CHANNEL))
    }
    offsets = {} if cut else _offsets(look, name, known)
    return LabelDeviations(figures, offsets, mine.cut_at if cut else "")


def _offsets(
    look: CaseLook, name: str, known: LabelProfile
) -> dict[str, tuple[float, float, float]]:
    found = {}
    for other, three in known.offsets_mm.items():
        offset = offset_mm(look, name, other)
        if offset is not None:
            pairs = zip(three, offset.tolist(), strict=True)
            x, y, z = (_bounded(usual.deviation(mm)) for usual, mm in pairs)
            found[other] = x, y, z
    return found


def scan_deviations(look: CaseLook, profile: Profile) -> Figures:
    """Deviations of the scan's own figures."""
    return {
        name: _bounded(usual.deviation(look.scan[name]))
        for name, usual in profile.scan.items()
        if name in look.scan
    }


def inputs_of(found: LabelDeviations, scan: Figures, sureness: Sureness | None) -> Figures:
    """What a :class:`~medseg.core.profile.DiceModel` is given of one label.

    Args:
        found: Of the label.
        scan: Of the scan.
        sureness: Of the network, where it ran.
    """
    inputs: Figures = {
        name: found.figures[name]
        for name in ("volume", "sphericity", "parts", "stray share", "fullness")
        if name in found.figures
    }
    for name in ("elongation", "flatness"):
        if name in found.figures:
            inputs[name] = abs(found.figures[name])
    places = [abs(one) for three in found.offsets.values() for one in three]
    places += [abs(found.figures[f"{a} place"]) for a in AXES if f"{a} place" in found.figures]
    if places:
        inputs["place"] = math.sqrt(sum(one * one for one in places) / len(places))
    for name in _BY_CHANNEL:
        values = [value for key, value in found.figures.items() if _channel_of(key, name)]
        if values:
            # Of several channels the one that deviates most.
            inputs[name] = max(values, key=abs)
    if scan:
        inputs["scan"] = max(abs(one) for one in scan.values())
    if sureness is not None:
        shares = (sureness.dice, sureness.inside, sureness.found)
        inputs |= dict(zip(SURENESS, map(logit, shares), strict=True))
    return inputs


def logit(share: float) -> float:
    """Log odds of a share, which is kept from 0 and 1."""
    kept = min(max(share, _LEAST_CHANCE), 1 - _LEAST_CHANCE)
    return math.log(kept / (1 - kept))


def chance(odds: float) -> float:
    """The share that has these log odds."""
    return 1 / (1 + math.exp(-min(max(odds, -30.0), 30.0)))


def _channel_of(key: str, name: str) -> bool:
    return key.removeprefix(name).strip().isdigit() and key.startswith(name)


def _bounded(deviation: float) -> float:
    return min(max(deviation, -_FAR), _FAR)


def sureness_from(facts: Mapping[str, Mapping[str, float]]) -> dict[str, Sureness]:
    """What a run noted of its confidence, by label."""
    return {
        name: Sureness(one["dice"], one["inside"], one["found"], one.get("disagreement"))
        for name, one in facts.items()
    }
