"""How training patches are varied: which steps, how often, how strongly.

A step that is not wanted has probability 0. Values are those of the normalised patch, so
that a noise of 0.1 is a tenth of a standard deviation of the scan.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Chance(_Frozen):
    """How often a step is taken, and from which range its value is drawn, evenly."""

    probability: float = Field(ge=0, le=1)
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.high:
            raise ValueError(f"low must not be above high, not {self.low} and {self.high}")
        return self


class AugmentationPlan(_Frozen):
    """How training patches are varied; a probability is per sample.

    ``intensity_probability`` scales the probabilities of all steps that have a
    :class:`Chance`; 0 turns them off together.
    """

    rotation_degrees: float = Field(default=30.0, ge=0, le=180)
    scale: tuple[float, float] = (0.7, 1.4)
    affine_probability: float = Field(default=0.5, ge=0, le=1)
    mirror_axes: tuple[Literal[0, 1, 2], ...] = Field(
        default=(),
        description="Working axes; along the patient's left-right axis labels of "
        "inference.left_right_pairs are exchanged.",
    )
    elastic_probability: float = Field(default=0.0, ge=0, le=1)
    elastic_distance: float = Field(
        default=32.0, ge=4, description="Between control points, in voxels of the finest axis."
    )
    elastic_strength: float = Field(
        default=0.25, ge=0, le=0.4, description="Most displacement as a share of that distance; "
        "up to 0.4 nothing folds (Choi and Lee, 2000).",
    )  # fmt: skip
    intensity_probability: float = Field(default=0.5, ge=0, le=1)
    bias_field: Chance = Field(
        default=Chance(probability=0.0, low=0.05, high=0.3),
        description="Most coefficient of a polynomial of degree 3, whose exponential is the field.",
    )
    ghosting: Chance = Field(
        default=Chance(probability=0.0, low=0.2, high=0.7),
        description="Share by which every second to fifth line of k-space is weakened.",
    )
    motion: Chance = Field(
        default=Chance(probability=0.0, low=0.5, high=3.0),
        description="Shift in voxels while the outer lines of k-space are measured.",
    )
    spike: Chance = Field(
        default=Chance(probability=0.0, low=0.1, high=0.6),
        description="Height of one wave, in standard deviations of the patch.",
    )
    blur: Chance = Field(
        default=Chance(probability=0.4, low=0.5, high=1.0), description="Sigma in voxels."
    )
    noise: Chance = Field(
        default=Chance(probability=0.3, low=0.0, high=0.3), description="Standard deviation."
    )
    gain: Chance = Field(
        default=Chance(probability=0.4, low=0.75, high=1.25), description="Factor of brightness."
    )
    contrast: Chance = Field(
        default=Chance(probability=0.4, low=0.65, high=1.5), description="Factor about the mean."
    )
    coarseness: Chance = Field(
        default=Chance(probability=0.4, low=1.0, high=2.0),
        description="Factor by which the patch is sampled down, and up again.",
    )
    gamma: Chance = Field(
        default=Chance(probability=0.5, low=0.7, high=1.5), description="Exponent."
    )
    inverse_gamma: Chance = Field(
        default=Chance(probability=0.0, low=0.7, high=1.5),
        description="The same on the inverted patch.",
    )
    cutout: Chance = Field(
        default=Chance(probability=0.0, low=0.1, high=0.3),
        description="Sides of one to three boxes that are set to 0, as shares of the patch.",
    )
