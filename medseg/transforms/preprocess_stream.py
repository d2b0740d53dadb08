"""Preprocessing of scans above memory: slices in as the file has them, planes out.

The result is that of ``preprocess.preprocess_scan``. What must be known of the whole scan
first (the box to crop to, mean and standard deviation) is found in passes of their own; then
each slab is turned, normalised and resampled, and its planes leave.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medseg.core.errors import FileError, InputError
from medseg.core.geometry import Orientation, Triple
from medseg.core.plan import ChannelPlan, Plan
from medseg.core.scan import Scan
from medseg.transforms.normalise import Box, normalise
from medseg.transforms.planes import Across, planes_for, ranges_needed
from medseg.transforms.preprocess import RestoreRecord
from medseg.transforms.resample import AxisRules, axis_rules

# Slabs of this many voxels: 16 MB as float32.
_SLAB_VOXELS = 1 << 22
# Normalised with figures of the scan itself.
_OF_THE_SCAN = {"zscore", "zscore_nonzero", "rescale_01"}


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
        ranges: The least and the largest normalised values, where cubic ones are clipped to
            them: (C, 1, 1, 1), or one for each plane of the axis that is resampled separately.
    """

    record: RestoreRecord
    moments: tuple[Moments, ...]
    ranges: tuple[Tensor, Tensor] | None = None

    @property
    def axis(self) -> int:
        """The working axis along which planes leave: that of the file's slices."""
        return _streaming_axis(self.record)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, I, J, K) of the preprocessed scan."""
        return (len(self.moments), *self.record.working.shape)


def why_not_streamed(scan: Scan, plan: Plan) -> str:
    """Why a scan cannot be preprocessed slab by slab; "" where it can."""
    if plan.orientation == "ras" and not scan.geometry.is_regular:
        return "its axes are not at right angles"
    if scan.missing:
        return "it has not all channels"
    if plan.cascade_labels:
        return "its model takes the labels of an earlier stage"
    masked = [c.name for c in plan.channels if c.normalisation == "zscore_mask"]
    if masked:
        return f"channel '{masked[0]}' is normalised within a mask with its holes filled"
    return ""


def survey_scan(scan: Scan, plan: Plan) -> Survey:
    """Find out what must be known of a whole scan, slab by slab, in at most three passes.

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
    record = RestoreRecord.for_plan(scan.geometry, plan)
    if plan.crop == "nonzero":
        crop = _turned_box(_nonzero_box(scan), record.orientation, scan.geometry.shape)
        record = RestoreRecord.for_plan(scan.geometry, plan, crop=crop)
    moments = [Moments()] * len(plan.channels)
    kinds = [channel.normalisation for channel in plan.channels]
    if _OF_THE_SCAN & set(kinds):
        for _, slab in _slabs(scan, record):
            for place, (voxels, kind) in enumerate(zip(slab, kinds, strict=True)):
                counted = voxels[voxels != 0] if kind == "zscore_nonzero" else voxels
                moments[place] = moments[place].joined(counted.reshape(-1))
    survey = Survey(record, tuple(moments))
    return replace(survey, ranges=_ranges(scan, plan, survey))


def _ranges(scan: Scan, plan: Plan, survey: Survey) -> tuple[Tensor, Tensor] | None:
    record, low, high = survey.record, torch.tensor(torch.inf), torch.tensor(-torch.inf)
    rules = _image_rules(record, plan)
    over = ranges_needed(_covered(record), record.working.shape, rules, survey.axis)
    if over is None:
        return None
    for _, slab in _normal_slabs(scan, plan, survey):
        low = torch.minimum(low, slab.amin(over, keepdim=True))
        high = torch.maximum(high, slab.amax(over, keepdim=True))
    return low, high


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
        InputError: Its values are not those that the plan's normalisation takes.
    """
    record, axis = survey.record, survey.axis
    rules, flipped = _image_rules(record, plan), record.orientation.flips[axis]
    old, new = _covered(record), record.working.shape
    planes = planes_for(old[axis], new[axis], rules=rules, axis=axis, flipped=flipped)
    across = Across(old, new, rules=rules, axis=axis, ranges=survey.ranges)
    for start, slab in _normal_slabs(scan, plan, survey):
        at = old[axis] - start - slab.shape[axis + 1] if flipped else start
        # The streaming axis first, so that planes lie together: (D, C, u, v).
        for first, leaving in planes.through(at, across.before(slab).movedim(axis + 1, 0)):
            sink.write(first, across.after(leaving.movedim(0, axis + 1)))


def _normal_slabs(scan: Scan, plan: Plan, survey: Survey) -> Iterator[tuple[int, Tensor]]:
    """Slabs normalised and turned to (C, I, J, K), and their first slice in the file's order."""
    turn = survey.record.orientation
    for start, slab in _slabs(scan, survey.record):
        parts = zip(slab, plan.channels, survey.moments, strict=True)
        normal = torch.stack([_normalise(*part) for part in parts])
        turned = normal.permute(0, *(source + 1 for source in turn.axes))
        yield start, turned.flip([at + 1 for at in range(3) if turn.flips[at]])


def _streaming_axis(record: RestoreRecord) -> int:
    return record.orientation.axes.index(2)


def _covered(record: RestoreRecord) -> Triple:
    """Voxels of the scan, on the working axes, that the working grid covers."""
    if record.crop is None:
        return record.oriented.shape
    a, b, c = (part.stop - part.start for part in record.crop)
    return a, b, c


def _image_rules(record: RestoreRecord, plan: Plan) -> AxisRules:
    """How each working axis of the image is interpolated."""
    own = record.oriented.spacing_mm
    wanted = [step or old for step, old in zip(plan.spacing_mm, own, strict=True)]
    return axis_rules(plan.resampling.image, own, wanted, plan.resampling.anisotropy)


def _nonzero_box(scan: Scan) -> Box:
    """The smallest box, on the file's axes, of voxels that any channel has not 0."""
    ends: list[list[int]] = [[], [], []]
    for start, slab in _slabs(scan):
        there = (slab != 0).any(dim=0).nonzero()
        if len(there):
            for axis, (low, high) in enumerate(zip(*there.aminmax(dim=0), strict=True)):
                begin = start if axis == 2 else 0
                ends[axis] += [begin + int(low), begin + int(high) + 1]
    if not ends[0]:
        across, down, count = scan.geometry.shape
        return slice(0, across), slice(0, down), slice(0, count)
    a, b, c = (slice(min(one), max(one)) for one in ends)
    return a, b, c


def _turned_box(box: Box, orientation: Orientation, shape: Triple) -> Box:
    """A box of a grid of ``shape`` on the axes that ``orientation`` turns it to."""
    a, b, c = (
        slice(shape[axis] - box[axis].stop, shape[axis] - box[axis].start) if flip else box[axis]
        for axis, flip in zip(orientation.axes, orientation.flips, strict=True)
    )
    return a, b, c


def _slabs(scan: Scan, record: RestoreRecord | None = None) -> Iterator[tuple[int, Tensor]]:
    """The first slice of each slab, and the slab (C, I, J, D) float32.

    With a record only what its crop leaves; slices then count from there.
    """
    across, down, count = scan.geometry.shape
    box: Box = slice(0, across), slice(0, down), slice(0, count)
    if record is not None and record.crop is not None:
        back = record.orientation.inverse()
        box = _turned_box(record.crop, back, record.oriented.shape)
    depth = max(1, _SLAB_VOXELS // (len(scan.channels) * across * down))
    for number, slab in enumerate(scan.slabs(depth)):
        start = number * depth
        inside = slice(max(box[2].start - start, 0), max(box[2].stop - start, 0))
        part = slab[:, box[0], box[1], inside]
        if not part.size:
            continue
        voxels = torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))
        if not bool(torch.isfinite(voxels.sum(dtype=torch.float64))):
            bad = int(voxels.numel() - torch.isfinite(voxels).sum())
            raise FileError(
                scan.source,
                expected="finite voxels",
                got=f"{bad} that are NaN or infinite near slice {start}",
                cure="Replace them with the background value and try again.",
            )
        yield start + inside.start - box[2].start, voxels


def _normalise(voxels: Tensor, channel: ChannelPlan, moments: Moments) -> Tensor:
    """``normalise.normalise`` of a slab (I, J, D), with what was found in the whole scan."""
    kind = channel.normalisation
    if kind not in _OF_THE_SCAN:
        return normalise(voxels, channel)
    if kind == "rescale_01":
        return (voxels - moments.low) / max(moments.high - moments.low, 1e-6)
    if not moments.count:
        return voxels
    # Rounded to float32 as those of a whole scan are.
    mean, std = (float(np.float32(value)) for value in (moments.mean, moments.std))
    normal = (voxels - mean) / max(std, 1e-6)
    return torch.where(voxels != 0, normal, voxels) if kind == "zscore_nonzero" else normal
