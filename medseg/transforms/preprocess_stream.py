"""Preprocessing of scans above memory: slices in as the file has them, planes out.

The result is that of ``preprocess.preprocess_scan``. What must be known of the whole scan
first (mean and standard deviation) is found in a pass of its own; then each slab is turned,
normalised and resampled, and its planes leave.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from medseg.core.errors import FileError, InputError
from medseg.core.plan import ChannelPlan, Plan
from medseg.core.scan import Scan
from medseg.transforms.preprocess import RestoreRecord

# Slabs of this many voxels: 16 MB as float32.
_SLAB_VOXELS = 1 << 22


class PlaneSink(Protocol):
    """Takes planes of a volume (C, I, J, K), in any order along one axis."""

    def write(self, start: int, planes: Tensor) -> None:
        """Keep planes (C, I, J, K) float32 from index ``start`` along that axis on."""
        ...


@dataclass(frozen=True)
class Moments:
    """How many voxels of a channel count, their mean, and their summed squared distance to it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = np.inf
    high: float = -np.inf

    def joined(self, values: Tensor) -> Moments:
        """With more voxels (N,).

        Source: T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for
        computing sample variances", COMPSTAT 1982.
        """
        more = values.numel()
        if not more:
            return self
        variance, mean = torch.var_mean(values.double(), correction=0)
        count, apart = self.count + more, float(mean) - self.mean
        return Moments(
            count,
            self.mean + apart * more / count,
            self.squares + float(variance) * more + apart**2 * self.count * more / count,
            min(self.low, float(values.min())),
            max(self.high, float(values.max())),
        )

    @property
    def std(self) -> float:
        """Standard deviation of all, without correction."""
        return float(np.sqrt(self.squares / self.count)) if self.count else 0.0


@dataclass(frozen=True)
class Survey:
    """What must be known of a scan before its first plane can leave.

    Attributes:
        record: The way back, and the working grid.
        moments: One per channel; empty ones where the plan needs none.
    """

    record: RestoreRecord
    moments: tuple[Moments, ...]

    @property
    def axis(self) -> int:
        """The working axis along which planes leave: that of the file's slices."""
        return self.record.orientation.axes.index(2)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, I, J, K) of the preprocessed scan."""
        return (len(self.moments), *self.record.working.shape)


def why_not_streamed(scan: Scan, plan: Plan) -> str:
    """Why a scan cannot be preprocessed slab by slab; "" where it can."""
    if not scan.geometry.is_regular:
        return "its axes are not at right angles"
    if plan.crop != "none":
        return "its plan crops it"
    masked = [c.name for c in plan.channels if c.normalisation == "zscore_mask"]
    if masked:
        return f"channel '{masked[0]}' is normalised within a mask with its holes filled"
    image, record = plan.resampling.image, RestoreRecord.of(scan.geometry, plan.spacing_mm)
    linear = image.order == 1 and (image.separate == "never" or image.coarse_order == 1)
    if not linear and record.working.shape != record.oriented.shape:
        return "its plan resamples other than linearly"
    return ""


def survey_scan(scan: Scan, plan: Plan) -> Survey:
    """Find out what must be known of a whole scan, slab by slab, in at most one pass.

    Raises:
        InputError: It cannot be preprocessed by slab, or has other channels than the plan.
        FileError: It cannot be read, or holds NaN or infinity.
    """
    reason = why_not_streamed(scan, plan)
    if reason:
        raise InputError(
            scan.source,
            expected="a scan that can be streamed from the disk",
            got=f"one that cannot: {reason}",
            cure="Allow more memory.",
        )
    if len(scan.channels) != len(plan.channels):
        raise InputError(
            f"{scan.source}: channels",
            expected=str(len(plan.channels)),
            got=str(len(scan.channels)),
            cure="Give one image per channel in the plan's order.",
        )
    moments = [Moments()] * len(plan.channels)
    kinds = [channel.normalisation for channel in plan.channels]
    if set(kinds) & {"zscore", "zscore_nonzero", "rescale_01"}:
        for _, slab in _slabs(scan):
            for place, (voxels, kind) in enumerate(zip(slab, kinds, strict=True)):
                counted = voxels[voxels != 0] if kind == "zscore_nonzero" else voxels
                moments[place] = moments[place].joined(counted.reshape(-1))
    return Survey(RestoreRecord.of(scan.geometry, plan.spacing_mm), tuple(moments))


def stream_preprocessed(scan: Scan, plan: Plan, survey: Survey, sink: PlaneSink) -> None:
    """Preprocess a scan slab by slab.

    Args:
        scan: Best of a format that is read by slab; others are read as a whole.
        plan: Of the network.
        survey: From :func:`survey_scan`.
        sink: Gets each plane of the preprocessed scan once, along ``survey.axis``; of a scan
            that runs against this axis, from the end to the start.

    Raises:
        FileError: The scan cannot be read, or holds NaN or infinity.
    """
    record, axis = survey.record, survey.axis
    flipped = record.orientation.flips[axis]
    across = [side for place, side in enumerate(record.working.shape) if place != axis]
    depth = record.oriented.shape[axis]
    planes = _Planes(depth, record.working.shape[axis], flipped)
    for start, slab in _slabs(scan):
        parts = zip(slab, plan.channels, survey.moments, strict=True)
        normal = torch.stack([_normalise(*part) for part in parts])
        turned = normal.permute(0, *(source + 1 for source in record.orientation.axes))
        turned = turned.flip([at + 1 for at in range(3) if record.orientation.flips[at]])
        # The streaming axis first, so that planes lie together: (D, C, u, v).
        lying = _resample_planes(turned.movedim(axis + 1, 0), across)
        at = depth - start - lying.shape[0] if flipped else start
        for first, leaving in planes.through(at, lying):
            sink.write(first, leaving.movedim(0, axis + 1))


class _Planes:
    """Linear interpolation along the axis on which slabs arrive, one plane carried over.

    Half-pixel centres, edges repeated: ``resample.resample_image`` along one axis.
    """

    def __init__(self, old: int, new: int, flipped: bool) -> None:
        position = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
        self._below = np.floor(position).astype(np.intp)
        self._above = np.minimum(self._below + 1, old - 1)
        self._weight = (position - self._below).astype(np.float32)
        self._same, self._flipped = old == new, flipped
        self._carried: Tensor | None = None

    def through(self, start: int, slab: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Take planes (D, C, u, v) from ``start`` on; yield those that are complete by them."""
        if self._same:
            yield start, slab
            return
        fresh = start, start + slab.shape[0]
        if self._carried is not None:
            pair = [slab, self._carried] if self._flipped else [self._carried, slab]
            slab = torch.cat(pair)
            start -= not self._flipped
        # A plane is complete with the later of its two neighbours.
        later = self._below if self._flipped else self._above
        wanted = np.flatnonzero((later >= fresh[0]) & (later < fresh[1]))
        if wanted.size:
            below, above, weight = (
                torch.from_numpy(half[wanted])
                for half in (self._below - start, self._above - start, self._weight)
            )
            leaving = torch.lerp(slab[below], slab[above], weight[:, None, None, None])
            yield int(wanted[0]), leaving
        self._carried = slab[:1].clone() if self._flipped else slab[-1:].clone()


def _slabs(scan: Scan) -> Iterator[tuple[int, Tensor]]:
    """The first slice of each slab, and the slab (C, I, J, D) float32."""
    across, down, _ = scan.geometry.shape
    depth = max(1, _SLAB_VOXELS // (len(scan.channels) * across * down))
    start = 0
    for slab in scan.slabs(depth):
        voxels = torch.from_numpy(np.ascontiguousarray(slab, dtype=np.float32))
        if not bool(torch.isfinite(voxels.sum(dtype=torch.float64))):
            bad = int(voxels.numel() - torch.isfinite(voxels).sum())
            raise FileError(
                scan.source,
                expected="finite voxels",
                got=f"{bad} that are NaN or infinite near slice {start}",
                cure="Replace them with the background value and try again.",
            )
        yield start, voxels
        start += voxels.shape[-1]


def _normalise(voxels: Tensor, channel: ChannelPlan, moments: Moments) -> Tensor:
    """``preprocess.normalise`` of a slab (I, J, D), with what was found in the whole scan."""
    kind = channel.normalisation
    if kind == "none":
        return voxels
    if kind == "rgb_01":
        return voxels / 255.0
    if kind == "rescale_01":
        return (voxels - moments.low) / max(moments.high - moments.low, 1e-8)
    if kind == "ct":
        assert channel.mean is not None
        assert channel.std is not None
        clipped = voxels.clamp(channel.clip_low, channel.clip_high)
        return (clipped - channel.mean) / max(channel.std, 1e-6)
    # As float32, as the mean and deviation of a whole scan are taken.
    mean, std = (float(np.float32(value)) for value in (moments.mean, moments.std))
    normal = (voxels - mean) / max(std, 1e-6)
    if kind == "zscore_nonzero":
        return torch.where(voxels != 0, normal, voxels)
    return normal


def _resample_planes(planes: Tensor, shape: list[int]) -> Tensor:
    """Linear interpolation of (D, C, u, v) within its planes."""
    if list(planes.shape[2:]) == shape:
        return planes
    return interpolate(planes, size=shape, mode="bilinear", align_corners=False)
