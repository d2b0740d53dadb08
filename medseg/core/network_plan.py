"""NetworkPlan: a network by name and size, and the rules that each network has for its sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from medseg.core.network_options import (
    NETWORK_KINDS,
    DeeplabOptions,
    FcnOptions,
    MednextOptions,
    NetworkKind,
    NetworkOptions,
    SegresnetOptions,
    SwinUnetrOptions,
    UnetrOptions,
)

Triple = tuple[int, int, int]
_Side = Annotated[int, Field(ge=1)]
Sides = tuple[_Side, _Side, _Side]
# Far beyond any network; what a damaged or wicked plan asks for beyond is refused.
_Width = Annotated[int, Field(ge=1, le=1 << 20)]
_Count = Annotated[int, Field(ge=1, le=64)]
MOST_STAGES = 16


class NetworkPlan(BaseModel):
    """A network by name and size; one entry per resolution stage, finest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "unet"
    spatial_dims: Literal[2, 3]
    in_channels: int = Field(ge=1)
    classes: int = Field(ge=1, description="Labels and background; with regions the regions.")
    features: tuple[_Width, ...] = Field(
        min_length=2, max_length=MOST_STAGES, description="Channels of each stage."
    )
    strides: tuple[Sides, ...] = Field(description="Step into each stage; (1, 1, 1) first.")
    kernels: tuple[Sides, ...] = Field(description="Kernel of each stage; sides are odd.")
    convolutions: _Count = Field(default=2, description="Convolutions per stage.")
    encoder_convolutions: tuple[_Count, ...] = Field(
        default=(),
        description="Convolutions (of some networks: blocks) of each encoder stage, finest first; "
        "empty takes ``convolutions`` for all.",
    )
    decoder_convolutions: tuple[_Count, ...] = Field(
        default=(),
        description="The same of each decoder stage, finest first; one fewer than the encoder.",
    )
    deep_supervision: bool = True
    options: SerializeAsAny[NetworkOptions] = Field(
        default=NetworkOptions(), validate_default=True, description="What only this network has."
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in NETWORK_KINDS:
            raise ValueError(f"one of {', '.join(NETWORK_KINDS)}")
        return name

    @field_validator("options", mode="before")
    @classmethod
    def _of_this_network(cls, value: Any, info: ValidationInfo) -> Any:
        kind = NETWORK_KINDS.get(info.data.get("name", ""))
        if kind is None:  # which is an error already
            return NetworkOptions()
        given = value.model_dump() if isinstance(value, NetworkOptions) else value
        if isinstance(given, dict):
            strange = sorted(set(map(str, given)) - set(kind.options.model_fields))
            if strange:
                known = ", ".join(kind.options.model_fields) or "none"
                raise ValueError(f"options of {info.data['name']}: {known}; not {strange[0]}")
        try:
            return kind.options.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{key} of {info.data['name']}: {first['msg']}") from None

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if not len(self.features) == len(self.strides) == len(self.kernels):
            raise ValueError("features, strides and kernels need one entry per stage each")
        if self.strides[0] != (1, 1, 1):
            raise ValueError(f"the first stride must be (1, 1, 1), not {self.strides[0]}")
        if any(side % 2 == 0 for kernel in self.kernels for side in kernel):
            raise ValueError(f"kernels must be odd, not {self.kernels}")
        stages = len(self.features)
        if len(self.encoder_convolutions) not in (0, stages):
            raise ValueError(f"encoder_convolutions needs {stages} entries or none")
        if len(self.decoder_convolutions) not in (0, stages - 1):
            raise ValueError(f"decoder_convolutions needs {stages - 1} entries or none")
        return self

    @model_validator(mode="after")
    def _as_the_network_needs(self) -> Self:
        if self.deep_supervision and not self.kind.supervised:
            raise ValueError(f"{self.name} has no deep supervision; deep_supervision must be false")
        if self.encoder_convolutions + self.decoder_convolutions and not self.kind.counted:
            raise ValueError(f"{self.name} has its own number of convolutions in each stage")
        wanted = _RULES[self.name](self) if self.name in _RULES else None
        if wanted is not None:
            raise ValueError(f"{self.name} needs {wanted}")
        return self

    @property
    def kind(self) -> NetworkKind:
        """What holds for all networks of this name."""
        return NETWORK_KINDS[self.name]

    @property
    def encoder_counts(self) -> tuple[int, ...]:
        """Convolutions of each encoder stage, finest first."""
        return self.encoder_convolutions or (self.convolutions,) * len(self.features)

    @property
    def decoder_counts(self) -> tuple[int, ...]:
        """Convolutions of each decoder stage, finest first."""
        return self.decoder_convolutions or (self.convolutions,) * (len(self.features) - 1)

    @property
    def divisor(self) -> Triple:
        """What each side of a patch must be a multiple of."""
        sides = [1, 1, 1]
        for stride in self.strides:
            sides = [side * step for side, step in zip(sides, stride, strict=True)]
        return sides[0], sides[1], sides[2]

    @property
    def fixed_size(self) -> Triple | None:
        """The only patch that it takes; None where any multiple of ``divisor`` will do."""
        return self.options.image_size if isinstance(self.options, UnetrOptions) else None

    @property
    def dilations(self) -> tuple[int, ...]:
        """How far apart the kernel's voxels lie in each stage (``deeplab``; else 1).

        A stage after the first that takes no step is dilated twice as much as the one before.
        """
        found = [1]
        for stride in self.strides[1:]:
            keeps = self.name == "deeplab" and stride == (1, 1, 1)
            found.append(found[-1] * 2 if keeps else found[-1])
        return tuple(found)


def _halved(plan: NetworkPlan) -> str | None:
    step = (2, 2, 2) if plan.spatial_dims == 3 else (2, 2, 1)
    fits = all(stride == step for stride in plan.strides[1:])
    return None if fits else f"strides {step} after the first"


def _widths(plan: NetworkPlan, factors: tuple[int, ...]) -> str | None:
    """Features in fixed proportions to the first; factors beyond the last are not looked at."""
    wanted = tuple(plan.features[0] * factor for factor in factors)
    return None if plan.features[: len(factors)] == wanted else f"features {wanted}"


def _doubled(plan: NetworkPlan) -> str | None:
    return _widths(plan, tuple(2**level for level in range(len(plan.features))))


def _one_kernel(plan: NetworkPlan, *, side: int | None = None) -> str | None:
    """The same kernel in all stages; with a side, a cube of it."""
    dims = plan.spatial_dims
    first = plan.kernels[0][:dims]
    wanted = first if side is None else (side,) * dims
    fits = all(kernel[:dims] == wanted for kernel in plan.kernels)
    return None if fits else f"the kernel {wanted} in each stage"


def _stages(plan: NetworkPlan, count: int) -> str | None:
    return None if len(plan.features) == count else f"{count} stages"


def _fcn(plan: NetworkPlan) -> str | None:
    assert isinstance(plan.options, FcnOptions)
    fits = plan.options.fused_stages <= len(plan.features)
    return None if fits else f"options.fused_stages of at most {len(plan.features)}, its stages"


def _deeplab(plan: NetworkPlan) -> str | None:
    assert isinstance(plan.options, DeeplabOptions)
    fits = plan.options.low_stage < len(plan.features) - 1
    return None if fits else f"options.low_stage below {len(plan.features) - 1}, its last stage"


def _dynunet(plan: NetworkPlan) -> str | None:
    return None if len(plan.features) >= 3 else "3 stages or more"


def _attention_unet(plan: NetworkPlan) -> str | None:
    # A gate has half the channels of its stage.
    return _one_kernel(plan) or (None if min(plan.features[:-1]) >= 2 else "features of 2 or more")


def _segresnet(plan: NetworkPlan) -> str | None:
    assert isinstance(plan.options, SegresnetOptions)
    sizes = _halved(plan) or _doubled(plan) or _one_kernel(plan, side=3)
    if sizes or plan.features[0] % plan.options.groups == 0:
        return sizes
    return f"features that are multiples of options.groups, {plan.options.groups}"


def _mednext(plan: NetworkPlan) -> str | None:
    assert isinstance(plan.options, MednextOptions)
    stages = len(plan.features)
    if len(plan.options.expansions) not in (0, stages):
        return f"{stages} options.expansions, one per stage, or none"
    return _halved(plan) or _doubled(plan) or _one_kernel(plan, side=plan.kernels[0][0])


def _swin_unetr(plan: NetworkPlan) -> str | None:
    assert isinstance(plan.options, SwinUnetrOptions)
    sizes = _stages(plan, 6) or _halved(plan) or _widths(plan, (1, 1, 2, 4, 8, 16))
    sizes = sizes or _one_kernel(plan, side=3)
    if sizes is None and plan.features[0] % 12:
        return "features that are multiples of 12"
    shares = zip(plan.features[1:], plan.options.heads, strict=False)
    if sizes is None and any(width % heads for width, heads in shares):
        return "options.heads that divide the features of stages 2 to 5"
    return sizes


def _unetr(plan: NetworkPlan) -> str | None:
    assert isinstance(plan.options, UnetrOptions)
    sizes = _stages(plan, 5) or _halved(plan) or _widths(plan, (1, 2, 4, 8))
    sizes = sizes or _one_kernel(plan, side=3)
    if sizes is None and plan.features[-1] % plan.options.heads:
        return f"options.heads that divide {plan.features[-1]}, the last of features"
    return sizes


_RULES: dict[str, Callable[[NetworkPlan], str | None]] = {
    "fcn": _fcn,
    "deeplab": _deeplab,
    "dynunet": _dynunet,
    "attention_unet": _attention_unet,
    "segresnet": _segresnet,
    "mednext": _mednext,
    "swin_unetr": _swin_unetr,
    "unetr": _unetr,
}
