"""Masks with known truth, as what predicted Dice is learned from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.labels import Label, LabelSet
from medseg.core.profile import Profile
from medseg.evaluation.overlap import dice, overlap_counts
from medseg.inference.confidence import Sureness
from medseg.quality.calibration import Made, Sample, fit_dice_model
from medseg.quality.deviations import SURENESS, deviations_of, inputs_of, scan_deviations
from medseg.quality.features import CaseLook, LabelLook, Scale, View
from medseg.quality.planted import KINDS, faulty_masks
from medseg.quality.profile import learn_profile, usual

# Sound masks stand beside faulty ones in this share.
_SOUND_SHARE = 1 / 6
# Log odds: from a Dice of 0.90 to one of 0.88.
_PROMISE_FLOOR = 0.2


@dataclass(frozen=True)
class KnownCase:
    """A case with its reference mask.

    Attributes:
        number: Of the case.
        mask: (I, J, K) reference, values of ``labels``.
        labels: Of the model.
        view: Of the scan.
        look: At the reference mask.
        ignored: (I, J, K) voxels that nobody has labelled; None where there are none.
    """

    number: int
    mask: NDArray[Any]
    labels: LabelSet
    view: View
    look: CaseLook
    ignored: NDArray[np.bool_] | None = None

    @property
    def told(self) -> tuple[Label, ...]:
        """Labels that were looked for in this case."""
        return tuple(one for one in self.labels.labels if one.name not in self.look.unknown)


@dataclass
class Study:
    """What a training run learns of quality, on its way to a profile.

    Attributes:
        looks: At training cases, by the number of the case.
        samples: Masks of cases that were not trained on.
    """

    looks: dict[int, CaseLook] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def profile(self, labels: LabelSet, scale: Scale) -> Profile | None:
        """What is usual, and what to expect of a mask; None without a case."""
        if not self.looks:
            return None
        known = learn_profile(list(self.looks.values()), labels, scale)
        return with_expectations(known, self.samples)

    def to_json(self) -> str:
        """For the run's folder."""
        looks = {str(number): asdict(look) for number, look in self.looks.items()}
        return json.dumps({"looks": looks, "samples": [asdict(one) for one in self.samples]})

    @classmethod
    def from_json(cls, text: str) -> Study:
        """What :meth:`to_json` gave.

        Raises:
            ValueError, KeyError, TypeError: It is something else.
        """
        raw = json.loads(text)
        looks = {int(number): _look(one) for number, one in raw["looks"].items()}
        return cls(looks, [Sample(**one) for one in raw["samples"]])


def with_expectations(profile: Profile, samples: Sequence[Sample]) -> Profile:
    """The same profile, with what masks of known truth teach of the Dice of others."""
    own = [one for one in samples if SURENESS[0] in one.inputs]
    bare = [
        replace(one, inputs={n: v for n, v in one.inputs.items() if n not in SURENESS})
        for one in samples
    ]
    labels = {}
    for name, known in profile.labels.items():
        final = [one for one in samples if one.label == name and one.made == "model"]
        promises = [one.inputs[SURENESS[0]] for one in final if SURENESS[0] in one.inputs]
        of_model = {
            "usual_dice": float(np.median([one.dice for one in final])) if final else None,
            "promised": usual(promises, _PROMISE_FLOOR),
        }
        labels[name] = known.model_copy(update=of_model)
    models = {"with_confidence": fit_dice_model(own), "alone": fit_dice_model(bare)}
    return profile.model_copy(update={"labels": labels, **models})


def samples_of(
    case: KnownCase,
    mask: NDArray[Any],
    profile: Profile,
    sureness: Mapping[str, Sureness],
    *,
    made: Made,
) -> list[Sample]:
    """One sample for each label that a mask shows and that was looked for in the case.

    Args:
        case: Whose mask it is.
        mask: (I, J, K) values of the labels.
        profile: To compare it with.
        sureness: Of the network, of masks that it made.
        made: What made the mask.
    """
    if not case.told:
        return []
    if case.ignored is not None:
        mask = np.where(case.ignored, 0, mask).astype(mask.dtype)
    look = case.view.look(mask, case.labels)
    counts = overlap_counts(mask, case.mask, case.labels.values)
    return [
        _sample(case, label, look, profile, dice(counts[label.value]), sureness, made)
        for label in case.told
        if label.name in look.labels
    ]


def planted_samples(
    case: KnownCase, profile: Profile, rng: np.random.Generator, *, most: int
) -> Iterator[Sample]:
    """Samples of faults that are planted in the reference mask, and of the mask as it is.

    Args:
        case: Without faults.
        profile: To compare with.
        rng: Chance.
        most: Samples with a fault, about.

    Yields:
        One by one, for who stops in between: labels in an order of chance, kinds of faults in
        turn, and the sound mask once in a while.
    """
    shown = [label for label in case.told if label.name in case.look.labels]
    each, rest = divmod(most, len(KINDS) * max(1, len(shown)))
    # Of many labels some are drawn.
    count = len(shown) if each else max(1, rest // len(KINDS))
    for place in rng.permutation(len(shown))[:count]:
        label, sound_ones = shown[int(place)], 1.0
        sound = _sample(case, label, case.look, profile, 1.0, {}, "planted")
        for faulty in _faulty(case, label, rng, max(1, each)):
            own = case.view.look(faulty, LabelSet(labels=(label,)))
            look = replace(case.look, labels={**case.look.labels, **own.labels})
            counts = overlap_counts(faulty, case.mask, [label.value])
            score = dice(counts[label.value])
            yield _sample(case, label, look, profile, score, {}, "planted")
            if sound_ones >= 1:
                sound_ones -= 1
                yield sound
            sound_ones += _SOUND_SHARE


def _faulty(
    case: KnownCase, label: Label, rng: np.random.Generator, each: int
) -> Iterator[NDArray[Any]]:
    spacing_mm = case.view.geometry.spacing_mm
    return faulty_masks(case.mask, label.value, spacing_mm, rng, each=each)


def _sample(
    case: KnownCase,
    label: Label,
    look: CaseLook,
    profile: Profile,
    score: float,
    sureness: Mapping[str, Sureness],
    made: Made,
) -> Sample:
    inputs = inputs_of(
        deviations_of(look, label.name, profile), scan_deviations(look, profile),
        sureness.get(label.name),
    )  # fmt: skip
    return Sample(label.name, inputs, score, case.number, made)


def _look(raw: Mapping[str, Any]) -> CaseLook:
    labels = {
        name: LabelLook(**{**one, "centre_mm": tuple(one["centre_mm"])})
        for name, one in raw["labels"].items()
    }
    return CaseLook(labels, dict(raw["scan"]), str(raw["axis_codes"]), tuple(raw["unknown"]))
