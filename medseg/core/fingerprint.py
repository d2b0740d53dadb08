"""Fingerprint: what the training cases look like."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChannelFacts(_Frozen):
    """Intensities of one channel, over foreground and over all voxels of the training cases."""

    name: str
    modality: str
    foreground_mean: float
    foreground_std: float
    percentile_00_5: float
    percentile_99_5: float
    zero_share: float = Field(ge=0, le=1, description="Share of voxels that are exactly 0.")


class Fingerprint(_Frozen):
    """What the training cases look like. Holds no name of a case."""

    cases: int
    two_dimensional: bool
    median_spacing_mm: tuple[float, float, float]
    low_spacing_mm: tuple[float, float, float]
    median_shape: tuple[int, int, int]
    max_shape: tuple[int, int, int]
    channels: tuple[ChannelFacts, ...]
    label_voxel_share: dict[str, float]
    label_cases: dict[str, int]
    label_places: dict[str, tuple[float, float, float]] = Field(
        default={}, description="Mean centroid along R, A and S, as shares of the field of view."
    )
    label_place_spread: dict[str, tuple[float, float, float]] = Field(
        default={}, description="Standard deviation of the same over cases."
    )
    pair_sides: dict[str, float] = Field(
        default={},
        description="By the left label of a pair: share of the scans with both in which it lies "
        "farther left. Pairs that no scan shows are left out.",
    )
    regions: bool = Field(default=False, description="The labels overlap.")
    ignore: int | None = Field(default=None, description="Mask value of unlabelled voxels.")
