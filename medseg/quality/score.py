"""How far a mask can be trusted, and why not, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medseg.core.profile import Profile, Usual
from medseg.inference.confidence import Sureness
from medseg.quality.calibration import predict_dice
from medseg.quality.deviations import (
    AXES,
    SURENESS,
    LabelDeviations,
    deviations_of,
    inputs_of,
    logit,
    scan_deviations,
)
from medseg.quality.features import CaseLook, Figures

# From here on a deviation is told.
_TOLD = 3.5
# Of what a network promises where it is not known what it usually does.
_UNSURE = 0.5
_EXPECTED = 0.9
# As where one of two members gives the whole organ 0.75 and the other 0.25.
_APART = 0.35
# An empty mask of what few scans show may be right, or have missed it.
_NOTHING_TO_JUDGE = 0.5
_AIR_HU, _NO_AIR_HU = -500.0, -300.0
_SHAPE = ("sphericity", "elongation", "flatness", "fullness")
_BRIGHTNESS = ("mean", "dark end", "bright end", "spread")


@dataclass(frozen=True)
class LabelTrust:
    """What is to be thought of one label of a mask.

    Attributes:
        trust: 0 to 1.
        dice: Predicted, with the ends of its interval; None where nothing was learned.
        reasons: Why it may be wrong; none where nothing is odd.
    """

    trust: float
    dice: tuple[float, float, float] | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class CaseTrust:
    """What is to be thought of a mask.

    Attributes:
        trust: That of the label that is trusted least, 0 to 1.
        scan_reasons: What is odd about the scan.
        labels: By name; labels that are absent and may be are left out.
    """

    trust: float
    scan_reasons: tuple[str, ...]
    labels: dict[str, LabelTrust]

    @property
    def reasons(self) -> list[str]:
        """All of them, one line for each label that is odd, the worst first."""
        lines = [f"scan: {', '.join(self.scan_reasons)}"] if self.scan_reasons else []
        worst = sorted(self.labels.items(), key=lambda item: item[1].trust)
        return lines + [f"{n}: {', '.join(one.reasons)}" for n, one in worst if one.reasons]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for sidecar and ledger."""
        labels: dict[str, Any] = {}
        for name, one in self.labels.items():
            labels[name] = {"trust": round(one.trust, 4)}
            if one.dice is not None:
                dice, low, high = (round(value, 4) for value in one.dice)
                labels[name] |= {"predicted_dice": dice, "interval": [low, high]}
        return {"trust": round(self.trust, 4), "reasons": self.reasons, "labels": labels}


def judge(
    look: CaseLook, profile: Profile, sureness: Mapping[str, Sureness] | None = None
) -> CaseTrust:
    """Judge a mask by what is usual.

    The trust in a label is its predicted Dice; of a mask that the network made, as a share of
    what the model usually reaches on that label. Of such a mask two predictions are made: with
    the network's confidence, which is the better one and is told, and by the figures alone,
    which has learned from planted faults; the lower share counts. Where nothing was learned,
    trust falls with the deviations from training.

    Args:
        look: At the mask and its scan, scaled as ``profile.absolute`` says.
        profile: Of the model.
        sureness: Of the network, by label, where it made the mask.
    """
    scan = scan_deviations(look, profile)
    labels = {}
    for name, known in profile.labels.items():
        if name in look.labels:
            labels[name] = _judge_label(look, name, profile, scan, (sureness or {}).get(name))
        elif known.seen_share >= _EXPECTED:
            reason = f"absent, though {100 * known.seen_share:.0f} % of training masks show it"
            dice = (0.0, 0.0, 0.0) if profile.alone else None
            labels[name] = LabelTrust(0.0, dice, (reason,))
    trust = min((one.trust for one in labels.values()), default=_NOTHING_TO_JUDGE)
    reasons = _scan_reasons(look, profile, scan) + ["no label to be judged"] * (not labels)
    return CaseTrust(trust, tuple(reasons), labels)


def _judge_label(
    look: CaseLook, name: str, profile: Profile, scan: Figures, sure: Sureness | None
) -> LabelTrust:
    found = deviations_of(look, name, profile)
    inputs = inputs_of(found, scan, sure)
    models = [profile.with_confidence if sure else None, profile.alone]
    dice = [predict_dice(model, name, inputs) for model in models if model is not None]
    usual = (profile.labels[name].usual_dice or 1.0) if sure else 1.0
    trust = min((min(1.0, one[0] / usual) for one in dice), default=_without_model(inputs, sure))
    reasons = tuple(_reasons(look, name, found, sure, profile.labels[name].promised))
    return LabelTrust(trust, dice[0] if dice else None, reasons)


def _without_model(inputs: Figures, sure: Sureness | None) -> float:
    """From 1 where all is usual towards 0."""
    odd = [max(0.0, abs(value) - 2.0) for name, value in inputs.items() if name not in SURENESS]
    calm = 1 / (1 + math.sqrt(sum(one * one for one in odd)) / 6)
    return calm * (sure.dice if sure else 1.0)


def _reasons(
    look: CaseLook,
    name: str,
    found: LabelDeviations,
    sure: Sureness | None,
    promised: Usual | None,
) -> list[str]:
    mine, figures = look.labels[name], found.figures
    told = []
    if figures.get("parts", 0.0) > _TOLD:
        told.append(f"{mine.parts} parts")
    if abs(figures.get("volume", 0.0)) > _TOLD:
        told.append(f"volume ({mine.volume_ml:.3g} ml) {_sd(figures['volume'])}")
    odd_shape = max(_SHAPE, key=lambda one: abs(figures.get(one, 0.0)))
    if abs(figures.get(odd_shape, 0.0)) > _TOLD:
        told.append(f"{odd_shape} {_sd(figures[odd_shape])}")
    told += _place_reasons(found)
    if found.cut_at:
        told.append(f"touches the image border ({found.cut_at})")
    odd_light = {key: value for key, value in figures.items() if key.startswith(_BRIGHTNESS)}
    if odd_light:
        worst = max(odd_light, key=lambda key: abs(odd_light[key]))
        if abs(odd_light[worst]) > _TOLD:
            told.append(f"intensities ({worst.removesuffix(' 0')}) {_sd(odd_light[worst])}")
    return told + ([] if sure is None else _network_reasons(sure, promised))


def _network_reasons(sure: Sureness, promised: Usual | None) -> list[str]:
    told = []
    if _is_unsure(sure, promised):
        told.append(f"the network itself is unsure (it promises a Dice of {sure.dice:.2f})")
    if (sure.disagreement or 0.0) > _APART:
        told.append(f"members or mirrored views disagree ({sure.disagreement:.2f})")
    return told


def _is_unsure(sure: Sureness, promised: Usual | None) -> bool:
    if promised is None:
        return sure.dice < _UNSURE
    return promised.deviation(logit(sure.dice)) < -_TOLD


def _place_reasons(found: LabelDeviations) -> list[str]:
    """Where it lies too far, beside the neighbour that says so most strongly."""
    worst = max(
        (
            (abs(value), value, axis, other)
            for other, three in found.offsets.items()
            for axis, value in enumerate(three)
        ),
        default=(0.0, 0.0, 0, ""),
    )
    if worst[0] > _TOLD:
        directions = (("left", "right"), ("back", "front"), ("down", "up"))
        word = directions[worst[2]][worst[1] > 0]
        return [f"lies {worst[0]:.1f} sd too far {word} of its place beside {worst[3]}"]
    own = {f"{axis} place": found.figures.get(f"{axis} place", 0.0) for axis in AXES}
    odd = max(own, key=lambda key: abs(own[key]))
    return [f"{odd} in the body {_sd(own[odd])}"] if abs(own[odd]) > _TOLD else []


def _scan_reasons(look: CaseLook, profile: Profile, scan: Figures) -> list[str]:
    told = []
    for ending in ("spacing", "field"):
        own = {name: value for name, value in scan.items() if name.endswith(ending)}
        odd = max(own, key=lambda name: abs(own[name]), default="")
        if odd and abs(own[odd]) > _TOLD:
            what = f"{odd} of view" if ending == "field" else odd
            told.append(f"{what} ({math.exp(look.scan[odd]):.3g} mm) {_sd(own[odd])}")
    light = {n: v for n, v in scan.items() if n.startswith(("intensity", "range"))}
    odd = max(light, key=lambda name: abs(light[name]), default="")
    if odd and abs(light[odd]) > _TOLD:
        told.append(
            "not CT-like intensities" if _lost_air(look, profile) else f"{odd} {_sd(light[odd])}"
        )
    if look.axis_codes and profile.axis_codes and look.axis_codes not in profile.axis_codes:
        seen = ", ".join(profile.axis_codes[:3])
        told.append(f"stored as {look.axis_codes}, training scans as {seen}")
    return told


def _lost_air(look: CaseLook, profile: Profile) -> bool:
    """Whether training scans, in Hounsfield units, reach down to air and this one does not."""
    usual = profile.scan.get("intensity 0 p1")
    if usual is None or not profile.absolute[0]:
        return False
    return usual.middle < _AIR_HU and look.scan["intensity 0 p1"] > _NO_AIR_HU


def _sd(deviation: float) -> str:
    return f"{abs(deviation):.1f} sd {'above' if deviation > 0 else 'below'} training"
