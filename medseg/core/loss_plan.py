"""LossPlan: what training makes small, by name and weight."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

LossName = Literal[
    "dice", "generalised_dice", "tversky", "cross_entropy", "topk", "focal", "boundary",
    "hausdorff", "cldice",
]  # fmt: skip
_ALIASES = {
    "ce": "cross_entropy", "bce": "cross_entropy", "topk_ce": "topk", "cl_dice": "cldice",
    "generalized_dice": "generalised_dice",
}  # fmt: skip
_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_NUMBER = r"[0-9]*\.?[0-9]+"
_TERM = re.compile(rf"(?:(?P<first>{_NUMBER})(?:->(?P<last>{_NUMBER}))?\*)?(?P<name>[a-z_]+)")
BACKGROUND = "background"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LossTerm(_Frozen):
    """One part of the loss. ``docs/losses.md`` has the formulas and their sources."""

    name: LossName
    weight: _Weight = 1.0
    end_weight: _Weight | None = Field(
        default=None, description="Reached in a straight line at the last step; null keeps weight."
    )
    gamma: float = Field(default=2.0, ge=0, le=10, description="focal: how much easy voxels fade.")
    alpha: float = Field(default=0.3, ge=0, le=1, description="tversky: of false positives.")
    beta: float = Field(default=0.7, ge=0, le=1, description="tversky: of false negatives.")
    share: float = Field(default=0.1, gt=0, le=1, description="topk: share of voxels that count.")
    iterations: int = Field(default=3, ge=1, le=50, description="cldice: thinning steps.")

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the settings of other losses: a person reads and edits this."""
        kept = {"name", "weight"}
        fields = type(self).model_fields
        return {k: v for k, v in handler(self).items() if k in kept or v != fields[k].default}

    def weight_at(self, progress: float) -> float:
        """The weight at a share of the run, 0 to 1."""
        if self.end_weight is None:
            return self.weight
        return self.weight + (self.end_weight - self.weight) * progress


class LossPlan(_Frozen):
    """What training makes small: terms by name and weight.

    Also as text: ``"dice + cross_entropy"``, ``"dice + 0.5*focal"``,
    ``"dice + cross_entropy + 0->1*boundary"`` (a weight that grows).
    """

    terms: tuple[LossTerm, ...] = Field(
        default=(LossTerm(name="dice"), LossTerm(name="cross_entropy")), min_length=1, max_length=8
    )
    class_weights: tuple[tuple[str, _Weight], ...] = Field(
        default=(),
        description="By label, also 'background'; 1 for all others. As text: liver=1, tumour=3.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return {"terms": value} if isinstance(value, str | list | tuple) else value

    @field_validator("terms", mode="before")
    @classmethod
    def _terms(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        parts = [re.sub(r"\s+", "", part) for part in value.casefold().split("+")]
        matches = [_TERM.fullmatch(part) for part in parts]
        made: list[dict[str, Any]] = []
        for match in matches:
            name = match["name"] if match else ""
            name = _ALIASES.get(name, name)
            if match is None or name not in get_args(LossName):
                raise ValueError(
                    f"losses joined by +, each of {', '.join(get_args(LossName))}, "
                    "with a weight where wanted: dice + 0.5*focal"
                )
            term: dict[str, Any] = {"name": name, "weight": float(match["first"] or 1)}
            made.append(term | ({"end_weight": float(match["last"])} if match["last"] else {}))
        return made

    @field_validator("class_weights", mode="before")
    @classmethod
    def _weights(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.rpartition("=") for part in value.split(",") if part.strip()]
        try:
            return tuple((name.strip(), float(weight)) for name, _, weight in pairs)
        except ValueError:
            raise ValueError("label=weight, with commas: liver=1, tumour=3") from None

    @model_validator(mode="after")
    def _something(self) -> LossPlan:
        if not any(term.weight or term.end_weight for term in self.terms):
            raise ValueError("a term with a weight above 0")
        names = [name for name, _ in self.class_weights]
        if len(set(names)) != len(names):
            raise ValueError(f"each label once, not {', '.join(names)}")
        return self
