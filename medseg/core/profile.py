"""Profile: what masks and scans of a model's training look like, and what to expect of a mask.

It holds statistics alone: no case, no name, no date. Its JSON lies in the model package.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medseg.core.plan import read_json_as

PROFILE_FORMAT = 1
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Usual(_Frozen):
    """What is usual of one figure.

    Attributes:
        middle: Median over the training cases.
        spread: Robust standard deviation.
    """

    middle: _Finite
    spread: _Positive

    def deviation(self, value: float) -> float:
        """How many standard deviations a value lies above the median."""
        return (value - self.middle) / self.spread


class LabelProfile(_Frozen):
    """What is usual of one label.

    Attributes:
        seen_share: Of the training cases that show it.
        cut_share: Of those, where it touches the edge of the scan.
        figures: See ``medseg.quality.features``.
        offsets_mm: From the centre of other labels to that of this one, along R, A and S.
        usual_dice: Median Dice of the model's masks of cases kept back from training.
        promised: Log odds of the Dice that the network's probabilities promise of these.
    """

    seen_share: _Share
    cut_share: _Share
    figures: dict[str, Usual] = {}
    offsets_mm: dict[str, tuple[Usual, Usual, Usual]] = {}
    usual_dice: _Share | None = None
    promised: Usual | None = None


class DiceModel(_Frozen):
    """From what was seen of a mask to its Dice with the truth.

    The logit of the Dice is ``intercept`` plus ``weights`` times what each input adds: a
    piecewise linear function through (``knots``, 0 ... ) is spelled as hinges, one weight for
    the input itself and one for what it has above each knot.

    Attributes:
        inputs: Their names.
        usual: What stands for an input that is not to be had.
        knots: Of each input.
        weights: Of each input: 1 + its knots.
        intercept: Of the logit.
        offsets: Added for single labels.
        edges: Predicted Dice that parts the ranges of the interval.
        below, above: How far the truth lies below and above the prediction in each range, at
            ``coverage``.
        coverage: Share of masks whose Dice the interval is to hold.
        masks: How many it was learned from.
    """

    inputs: tuple[str, ...] = Field(min_length=1)
    usual: tuple[_Finite, ...]
    knots: tuple[tuple[_Finite, ...], ...]
    weights: tuple[tuple[_Finite, ...], ...]
    intercept: _Finite
    offsets: dict[str, _Finite] = {}
    edges: tuple[_Finite, ...] = ()
    below: tuple[_Finite, ...]
    above: tuple[_Finite, ...]
    coverage: _Share = 0.9
    masks: int = Field(ge=1)

    @model_validator(mode="after")
    def _same_length(self) -> DiceModel:
        count = len(self.inputs)
        if not count == len(self.usual) == len(self.knots) == len(self.weights):
            raise ValueError("inputs, usual, knots and weights need one entry per input each")
        pairs = zip(self.knots, self.weights, strict=True)
        if any(len(weights) != len(knots) + 1 for knots, weights in pairs):
            raise ValueError("each input needs one weight more than knots")
        if not len(self.edges) + 1 == len(self.below) == len(self.above):
            raise ValueError("below and above need one entry more than edges")
        return self


class Profile(_Frozen):
    """What a model's training looked like.

    Attributes:
        cases: How many it was learned from.
        absolute: Of each channel, whether its intensities mean the same in every scan.
        labels: By name.
        scan: What is usual of the scan.
        axis_codes: Orientations that occurred, as stored.
        with_confidence: Predicts Dice from figures and the network's own confidence.
        alone: Predicts Dice from figures alone.
    """

    format_version: Literal[1] = 1
    cases: int = Field(ge=1)
    absolute: tuple[bool, ...]
    labels: dict[str, LabelProfile]
    scan: dict[str, Usual] = {}
    axis_codes: tuple[str, ...] = ()
    with_confidence: DiceModel | None = None
    alone: DiceModel | None = None

    def summary(self) -> dict[str, int]:
        """How many cases it was learned from, and how many masks with known truth."""
        models = [one for one in (self.with_confidence, self.alone) if one is not None]
        return {"cases": self.cases, "masks": max((one.masks for one in models), default=0)}

    def to_json(self) -> str:
        """The profile as JSON."""
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, *, source: str = "profile") -> Profile:
        """Read a profile.

        Raises:
            PackageError: It was written by a newer medseg, or is no profile.
        """
        newest = {"profile": PROFILE_FORMAT}
        return read_json_as(cls, text, newest, expected="a profile", source=source)
