"""What a plan says of the steps after the network, one by one and as a chain in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medseg.core.labels import LabelSet

StepKind = Literal[
    "largest", "min-volume", "nearest", "inside", "fill-holes", "fill-holes-slices", "open",
    "close", "smooth", "majority",
]  # fmt: skip
# What a step needs to be told besides its labels; of the two of "nearest" one.
_STEP_VALUES: dict[str, tuple[str, ...]] = {
    "min-volume": ("volume_mm3",), "nearest": ("other", "point_mm"), "inside": ("other",),
    "open": ("radius_mm",), "close": ("radius_mm",), "smooth": ("radius_mm",),
    "majority": ("radius_mm",),
}  # fmt: skip
# These look at connected regions, so that several labels can be one structure.
_OF_PARTS = ("largest", "min-volume", "nearest", "inside")
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class PostprocessStep(BaseModel):
    """One step of the chain after the network; docs/postprocessing.md says what each does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: StepKind
    label: str
    joined: tuple[str, ...] = Field(
        default=(), description="Further labels that count as one structure with it."
    )
    connectivity: Literal[4, 6, 8, 18, 26] = Field(
        default=26, description="Neighbours that hang together; 4 and 8 are for flat masks."
    )
    count: int = Field(default=1, ge=1, description="largest: how many regions to keep.")
    volume_mm3: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    radius_mm: float | None = Field(
        default=None, gt=0, le=1000,
        description="open, close, majority: of a ball; smooth: standard deviation of a Gaussian.",
    )  # fmt: skip
    other: str = Field(default="", description="inside, nearest: the label that it refers to.")
    point_mm: tuple[_Finite, _Finite, _Finite] | None = Field(
        default=None, description="nearest: a place, RAS+."
    )
    evidence: str = Field(default="", description="What it gained, where it was learned.")

    @model_validator(mode="after")
    def _has_its_values(self) -> Self:
        wanted = _STEP_VALUES.get(self.step, ())
        values = ("volume_mm3", "radius_mm", "other", "point_mm")
        given = [name for name in values if getattr(self, name) not in (None, "")]
        if set(given) - set(wanted) or len(given) != bool(wanted):
            rule = f"one of {', '.join(wanted)}" if wanted else f"none of {', '.join(values)}"
            raise ValueError(f"'{self.step}' takes {rule}, got {', '.join(given) or 'none'}")
        if self.count != 1 and self.step != "largest":
            raise ValueError(f"'{self.step}' takes no count")
        if self.joined and self.step not in _OF_PARTS:
            raise ValueError(f"'{self.step}' takes single labels")
        if self.other in self.structure:
            raise ValueError(f"'{self.step}' of '{self.other}' cannot refer to itself")
        return self

    @property
    def structure(self) -> tuple[str, ...]:
        """The labels that it cleans, as one structure."""
        return (self.label, *self.joined)

    @property
    def names(self) -> tuple[str, ...]:
        """All labels that it names."""
        return (*self.structure, *((self.other,) if self.other else ()))

    @property
    def text(self) -> str:
        """The step as it is typed: ``largest:liver+tumour``, ``min-volume:lesion=50mm3``."""
        value = self.other or (str(self.count) if self.count > 1 else "")
        for name, unit in (("volume_mm3", "mm3"), ("radius_mm", "mm")):
            given = getattr(self, name)
            value = value if given is None else f"{given:g}{unit}"
        if self.point_mm is not None:
            value = ",".join(f"{part:g}" for part in self.point_mm)
        text = f"{self.step}:{'+'.join(self.structure)}"
        return f"{text}={value}" if value else text

    def renamed(self, names: Mapping[str, str]) -> PostprocessStep | None:
        """The step for a set where labels have other names; None where one is not there."""
        if any(name not in names for name in self.names):
            return None
        changes: dict[str, object] = {
            "label": names[self.label],
            "joined": tuple(names[name] for name in self.joined),
            "other": names[self.other] if self.other else "",
        }
        return self.model_copy(update=changes)


class PostprocessChain(BaseModel):
    """Steps in a file of their own, as ``medseg postprocess --learn`` writes and others read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    labels: LabelSet | None = Field(
        default=None, description="Values of the labels, for masks that do not name their own."
    )
    steps: tuple[PostprocessStep, ...]
