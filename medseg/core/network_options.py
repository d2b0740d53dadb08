"""What each network is told beside its stages, and what holds for it: names, no torch.

``NETWORK_KINDS`` is the one list of networks; ``medseg.networks.build`` has a builder for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_Count = Annotated[int, Field(ge=1, le=64)]
_Rate = Annotated[int, Field(ge=1, le=64)]
_Width = Annotated[int, Field(ge=1, le=1 << 20)]
_Side = Annotated[int, Field(ge=1)]


class NetworkOptions(BaseModel):
    """Of a network that has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FcnOptions(NetworkOptions):
    """Of ``fcn``."""

    fused_stages: int = Field(
        default=3, ge=1, le=16, description="How many of the coarsest stages are scored and added."
    )


class DeeplabOptions(NetworkOptions):
    """Of ``deeplab``."""

    rates: tuple[_Rate, ...] = Field(
        default=(6, 12, 18),
        min_length=1,
        max_length=8,
        description="Dilation of each atrous convolution of the pyramid, in voxels of the last "
        "stage.",
    )
    pyramid_features: _Width = Field(default=256, description="Channels of pyramid and decoder.")
    low_stage: int = Field(
        default=1, ge=0, le=16, description="Stage whose features the decoder sees, from 0."
    )
    low_features: _Width = Field(default=48, description="Channels left of that stage.")


class SegresnetOptions(NetworkOptions):
    """Of ``segresnet``."""

    groups: int = Field(default=8, ge=1, le=1024, description="Groups of each group norm.")


class SwinUnetrOptions(NetworkOptions):
    """Of ``swin_unetr``."""

    depths: tuple[_Count, _Count, _Count, _Count] = Field(
        default=(2, 2, 2, 2), description="Transformer blocks of each of the four stages."
    )
    heads: tuple[_Count, _Count, _Count, _Count] = Field(
        default=(3, 6, 12, 24), description="Attention heads of each of the four stages."
    )
    window: int = Field(default=7, ge=2, le=32, description="Side of an attention window.")


class UnetrOptions(NetworkOptions):
    """Of ``unetr``; the last of ``features`` is the width of its transformer."""

    image_size: tuple[_Side, _Side, _Side] = Field(description="The one patch_size it takes.")
    mlp_features: _Width = Field(default=3072, description="Channels inside a block's MLP.")
    heads: _Count = Field(default=12, description="Attention heads of each block.")


class DynunetOptions(NetworkOptions):
    """Of ``dynunet``."""

    residual: bool = Field(default=False, description="Residual blocks instead of plain ones.")


class MednextOptions(NetworkOptions):
    """Of ``mednext``."""

    expansions: tuple[_Count, ...] = Field(
        default=(), description="Of each encoder stage, finest first; the decoder mirrors them. "
        "Empty takes 2 for all.",
    )  # fmt: skip


@dataclass(frozen=True)
class NetworkKind:
    """What holds for a network whatever its size.

    Attributes:
        title: What it is, in a few words.
        source: The paper.
        options: What ``network.options`` may hold.
        supervised: It has heads for deep supervision.
        counted: Its stages have as many convolutions (blocks) as the plan says.
        any_size: What is traced at one size of tile holds for all.
        optimiser: What it learns best with.
        learning_rate: What that begins with.
        channels_last: It can train with channels last in memory.
        needs: A package that the extra ``transformers`` brings; "" for none.
    """

    title: str
    source: str
    options: type[NetworkOptions] = NetworkOptions
    supervised: bool = False
    counted: bool = False
    any_size: bool = True
    optimiser: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 2e-3
    channels_last: bool = False
    needs: str = ""


NETWORK_KINDS: dict[str, NetworkKind] = {
    "unet": NetworkKind(
        "U-Net",
        "Ronneberger et al., MICCAI 2015; as in Isensee et al., Nature Methods 18, 2021",
        supervised=True,
        counted=True,
        optimiser="muon",
        channels_last=True,
    ),
    "residual_unet": NetworkKind(
        "U-Net with a residual encoder",
        "Isensee et al., nnU-Net Revisited, MICCAI 2024",
        supervised=True,
        counted=True,
        optimiser="muon",
        channels_last=True,
    ),
    "fcn": NetworkKind(
        "FCN: scores of coarse stages, added",
        "Long et al., CVPR 2015",
        options=FcnOptions,
        counted=True,
        optimiser="muon",
        channels_last=True,
    ),
    "deeplab": NetworkKind(
        "DeepLabV3+: atrous pyramid and a small decoder",
        "Chen et al., ECCV 2018",
        options=DeeplabOptions,
        counted=True,
        optimiser="muon",
        channels_last=True,
    ),
    "dynunet": NetworkKind(
        "MONAI's DynUNet", "Isensee et al., arXiv:1904.08128", options=DynunetOptions
    ),
    "attention_unet": NetworkKind(
        "MONAI's AttentionUnet: skips through attention gates", "Oktay et al., arXiv:1804.03999"
    ),
    "segresnet": NetworkKind(
        "MONAI's SegResNet",
        "Myronenko, arXiv:1810.11654",
        options=SegresnetOptions,
        counted=True,
    ),
    "mednext": NetworkKind(
        "MONAI's MedNeXt: depth-wise convolutions",
        "Roy et al., MICCAI 2023",
        options=MednextOptions,
        supervised=True,
        counted=True,
    ),
    "swin_unetr": NetworkKind(
        "MONAI's SwinUNETR: attention within shifted windows",
        "Hatamizadeh et al., arXiv:2201.01266",
        options=SwinUnetrOptions,
        any_size=False,
        learning_rate=5e-4,
        needs="einops",
    ),
    "unetr": NetworkKind(
        "MONAI's UNETR: a vision transformer as encoder",
        "Hatamizadeh et al., WACV 2022",
        options=UnetrOptions,
        any_size=False,
        learning_rate=5e-4,
        needs="einops",
    ),
}
