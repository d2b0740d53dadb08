"""Plan: what was decided from the data; Fingerprint: what was found in them.

A plan is all that is needed, beside weights, to segment a scan. Its JSON is read and
edited by people, so each field says its unit, and ``reasons`` says why it was chosen.
Arrays are always (C, I, J, K), in RAS+ unless the plan says another orientation or axis
order; a 2D plan has a patch of (I, J, 1) and a network that sees single slices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medseg.core.augmentation_plan import AugmentationPlan as AugmentationPlan
from medseg.core.errors import PackageError, SettingsError
from medseg.core.fingerprint import ChannelFacts as ChannelFacts
from medseg.core.fingerprint import Fingerprint as Fingerprint
from medseg.core.label_scheme import LabelScheme
from medseg.core.labels import LabelSet
from medseg.core.loss_plan import BACKGROUND, LossPlan
from medseg.core.network_plan import MOST_STAGES as MOST_STAGES
from medseg.core.network_plan import NetworkPlan as NetworkPlan
from medseg.core.network_plan import Sides
from medseg.core.network_plan import Triple as Triple
from medseg.core.postprocess_step import PostprocessStep as PostprocessStep

PLAN_FORMAT = 1

Spacing = tuple[float | None, float | None, float | None]
_Model = TypeVar("_Model", bound=BaseModel)
_Word = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^\S(.*\S)?$")]
_Step = Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
Normalisation = Literal[
    "ct", "zscore", "zscore_nonzero", "zscore_mask", "rescale_01", "rgb_01", "none"
]
Order = Literal[0, 1, 3]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChannelPlan(_Frozen):
    """How one channel is normalised.

    ``ct``: clip to [clip_low, clip_high], subtract ``mean``, divide by ``std`` (all HU, from
    the training foreground). ``zscore``: mean and standard deviation of the scan itself.
    ``zscore_nonzero``: the same over voxels that are not 0; zeros stay 0.
    ``zscore_mask``: the same inside the region where any channel is not 0, its holes filled;
    voxels outside it stay as they are.
    ``rescale_01``: least value to 0, greatest to 1. ``rgb_01``: 0-255 to 0-1. ``none``: as read.
    """

    name: str
    normalisation: Normalisation
    clip_low: float | None = None
    clip_high: float | None = None
    mean: float | None = None
    std: float | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = (self.clip_low, self.clip_high, self.mean, self.std)
        if self.normalisation == "ct" and any(value is None for value in given):
            raise ValueError("'ct' needs clip_low, clip_high, mean and std")
        if not all(value is None or isfinite(value) for value in given):
            raise ValueError(f"clip_low, clip_high, mean and std must be finite, not {given}")
        return self


class TrainingPlan(_Frozen):
    """How the weights are learned."""

    batch_size: int = Field(ge=1, description="Patches that a process takes at once.")
    accumulate: int = Field(
        default=1, ge=1, description="Batches whose gradients add up to one step."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="Of the network in a step; weights are fp32. auto: half on a GPU, fp32 on a "
        "CPU; the planner takes bf16 on a CPU that is quicker in it.",
    )
    memory_format: Literal["contiguous", "channels_last"] = Field(
        default="contiguous",
        description="Of tensors within the network in a step; the result is the same. The planner "
        "takes channels_last on a CPU that is quicker with it.",
    )
    optimiser: Literal["adamw", "sgd", "muon"] = "adamw"
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=3e-5, ge=0)
    warmup_share: float = Field(default=0.03, ge=0, lt=1)
    polynomial_power: float = Field(default=0.9, gt=0)
    loss: LossPlan = LossPlan()
    foreground_share: float = Field(
        default=0.5, ge=0, le=1, description="Patches of a batch that are centred on a label."
    )
    class_sampling: Literal["case", "rare", "balanced"] = Field(
        default="case",
        description="Which label such a patch is centred on. case: any of the case, all alike; "
        "rare: of the case, weighted by one over the number of cases that have it; balanced: "
        "any label at all, then a case that has it.",
    )
    channel_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="That a channel of a patch is 0; one always stays."
    )
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    clip_gradient_norm: float = Field(default=12.0, gt=0)
    steps_per_epoch: int = Field(default=50, ge=1)
    augmentation: AugmentationPlan = AugmentationPlan()


class AxisResampling(_Frozen):
    """Interpolation between the scan's grid and the working grid.

    ``order``: 0 nearest, 1 linear, 3 cubic B-spline (through the samples, clipped to their
    range). ``separate``: whether the coarsest axis is resampled by itself with
    ``coarse_order`` after the two others; ``auto`` does so where either grid is anisotropic
    and exactly one axis is coarsest.
    """

    order: Order = 1
    coarse_order: Order = 0
    separate: Literal["never", "auto", "always"] = "never"


class ResamplingPlan(_Frozen):
    """How images, training masks (or labels of an earlier stage) and logits are resampled."""

    image: AxisResampling = AxisResampling()
    labels: AxisResampling = AxisResampling()
    logits: AxisResampling = AxisResampling()
    anisotropy: float = Field(
        default=3.0, ge=1, description="Coarsest over finest spacing above which it is 'auto'."
    )
    rounding: Literal["half_up", "half_even"] = Field(
        default="half_up", description="Number of voxels where the spacing gives n + 1/2."
    )

    @model_validator(mode="after")
    def _for_labels(self) -> Self:
        if 3 in (self.labels.order, self.labels.coarse_order):
            raise ValueError("labels take order 0 or 1")
        if 3 in (self.logits.order, self.logits.coarse_order):
            raise ValueError("logits take order 0 or 1")
        return self


class InferencePlan(_Frozen):
    """How a whole scan is covered by patches."""

    step: float = Field(default=0.5, gt=0, le=1, description="Step as a share of the patch.")
    gaussian: bool = Field(default=True, description="Weigh a patch's centre more than its rim.")
    gaussian_sigma: float = Field(default=0.125, gt=0, description="As a share of the patch.")
    gaussian_floor: float = Field(default=1e-3, ge=0, lt=1, description="The least weight.")
    gaussian_centre: Literal["middle", "voxel"] = Field(
        default="middle", description="voxel: at index side // 2, also where a side is even."
    )
    mirror_axes: tuple[Literal[0, 1, 2], ...] = ()
    left_right_pairs: tuple[tuple[str, str], ...] = Field(
        default=(), description="Labels exchanged in views mirrored along left-right."
    )


class Plan(_Frozen):
    """Everything that was decided."""

    format_version: Literal[1] = 1
    labels: LabelSet
    channels: tuple[ChannelPlan, ...] = Field(min_length=1)
    modality: str = ""
    series_words: tuple[_Word, ...] = Field(
        default=(),
        description="Words of contrast or kernel (portal, B30f) by which --series auto prefers "
        "DICOM series; set by hand, since masks do not tell them.",
    )
    scan_names: Literal["plain", "numbered"] = Field(
        default="plain",
        description="numbered: case_0000 is the first channel of case, also where it is the only "
        "one, as nnU-Net names scans. Of several channels numbers are always understood.",
    )
    orientation: Literal["ras", "stored"] = Field(
        default="ras", description="ras: axes are turned towards RAS+; stored: as in the file."
    )
    axis_order: Triple = Field(
        default=(0, 1, 2),
        description="For each working axis, which axis it is after orientation; spacing_mm, "
        "patch_size, network and mirror_axes are in this order.",
    )
    crop: Literal["none", "nonzero"] = Field(
        default="none", description="nonzero: to the box of voxels that are not 0 anywhere."
    )
    spacing_mm: tuple[_Step, _Step, _Step] = Field(
        description="Working grid along the working axes; null keeps the scan's."
    )
    resampling: ResamplingPlan = ResamplingPlan()
    patch_size: Sides
    network: NetworkPlan
    activation: Literal["softmax", "regions"] = Field(
        default="softmax",
        description="regions: channel n, where above 0, is painted with the n-th label's value, "
        "later over earlier.",
    )
    ignore: int | None = Field(
        default=None, ge=1, le=65535, description="Mask value of voxels that training leaves out."
    )
    cascade_labels: int = Field(
        default=0, ge=0, description="Labels of an earlier stage, one-hot after the channels."
    )
    training: TrainingPlan
    inference: InferencePlan = InferencePlan()
    postprocess: tuple[PostprocessStep, ...] = ()
    reasons: dict[str, str] = {}

    @model_validator(mode="after")
    def _patch_fits(self) -> Self:
        divisor = self.network.divisor
        if any(side % step for side, step in zip(self.patch_size, divisor, strict=True)):
            raise ValueError(f"patch_size {self.patch_size} must be a multiple of {divisor}")
        if self.patch_size == divisor:
            # At its coarsest stage one voxel would be left, where a norm has nothing to norm.
            raise ValueError(f"patch_size must be more than {divisor}, one step of the network")
        fixed = self.network.fixed_size
        if fixed is not None and self.patch_size != fixed:
            raise ValueError(f"patch_size must be network.options.image_size, {fixed}")
        if self.network.spatial_dims == 2 and self.patch_size[2] != 1:
            raise ValueError("a 2D network needs a patch of (I, J, 1)")
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        classes = len(self.labels) + (self.activation == "softmax")
        if self.network.classes != classes:
            raise ValueError(f"network.classes must be {classes}")
        channels = len(self.channels) + self.cascade_labels
        if self.network.in_channels != channels:
            raise ValueError(f"network.in_channels must be {channels}")
        if sorted(self.axis_order) != [0, 1, 2]:
            raise ValueError(f"axis_order must hold 0, 1 and 2, not {self.axis_order}")
        if any(self.ignore in label.sources for label in self.labels.labels):
            raise ValueError(f"ignore ({self.ignore}) must be no value of a label")
        pairs = {name for pair in self.inference.left_right_pairs for name in pair}
        weighted = {name for name, _ in self.training.loss.class_weights}
        own = {BACKGROUND} if self.activation == "softmax" else set()
        for key, names in (
            ("training.loss.class_weights", weighted - own),
            ("postprocess", {name for step in self.postprocess for name in step.names}),
            ("inference.left_right_pairs", pairs),
        ):
            strange = names - set(self.labels.names)
            if strange:
                raise ValueError(f"{key} names unknown labels: {', '.join(sorted(strange))}")
        return self

    @property
    def scheme(self) -> LabelScheme:
        """How training masks become what the network learns."""
        return LabelScheme(self.labels, regions=self.activation == "regions", ignore=self.ignore)

    def to_json(self) -> str:
        """The plan as indented JSON."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str, *, source: str = "plan") -> Plan:
        """Read a plan.

        Raises:
            PackageError: It was written by a newer medseg, or is not a plan.
        """
        newest = {"plan": PLAN_FORMAT}
        return read_json_as(cls, text, newest, expected="a valid plan", source=source)


def read_json_as(
    kind: type[_Model],
    text: str | bytes,
    newest: Mapping[str, int],
    *,
    expected: str,
    source: str,
) -> _Model:
    """Read JSON that tells its format version.

    Args:
        kind: What it is to be.
        text: The JSON.
        newest: What it is called, and the newest format that this medseg knows; after it the
            same of parts that have formats of their own, by their keys.
        expected: What to call it where it does not fit.
        source: What to call the file in a message.

    Raises:
        PackageError: It is no JSON, does not fit, or was written by a newer medseg.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PackageError(source, expected="JSON", got=str(error)) from error
    for place, (what, number) in enumerate(newest.items()):
        part = raw.get(what) if place and isinstance(raw, dict) else raw
        _refuse_newer(part, number, what=what, source=source)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise PackageError(source, expected=expected, got=describe(error)) from error


def _refuse_newer(raw: object, newest: int, *, what: str, source: str) -> None:
    """Refuse JSON of a newer format before its fields, which may be unknown, are looked at.

    Args:
        raw: Parsed JSON; anything but an object passes, for the field check to refuse.
        newest: The newest format that this medseg knows.
        what: What it is the format of.
        source: What to call the file in the message.

    Raises:
        PackageError: Its ``format_version`` is higher.
    """
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > newest:
        raise PackageError(
            source,
            expected=f"{what} format {newest} or older",
            got=f"format {version}",
            cure="It was written by a newer medseg; update this one.",
        )


def first_fault(error: ValidationError) -> tuple[str, str, str]:
    """Key, rule and given value of the first fault of a pydantic error; "" where there is none."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    plain = key and isinstance(first["input"], str | int | float | bool | None)
    return key, rule, f"{first['input']!r:.60}" if plain else ""


def describe(error: ValidationError) -> str:
    """The first fault of a pydantic error in one line, with its key."""
    key, rule, given = first_fault(error)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return (f"{key}: " if key else "") + rule + (f", not {given}" if given else "") + more


def edited(plan: Plan, changes: dict[str, object]) -> Plan:
    """A new plan with dotted keys replaced, checked again as a whole.

    Raises:
        SettingsError: A key is unknown, or the plan no longer holds together.
    """
    data = plan.model_dump()
    for key, value in changes.items():
        *parents, last = key.split(".")
        room = data
        for part in parents:
            room = room.get(part) if isinstance(room, dict) else None  # type: ignore[assignment]
        if not isinstance(room, dict) or last not in room:
            raise SettingsError(f"plan.{key}", expected="a key of the plan", got="no such key")
        room[last] = value
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        key, rule, given = first_fault(error)
        raise SettingsError(f"plan.{key}".rstrip("."), expected=rule, got=given) from error
