"""Interpolation along one axis, as a table: which two voxels, and how much of the second.

Half-pixel centres, and the value of the edge beyond the outermost centres: the convention of
``torch.nn.functional.interpolate(align_corners=False)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from medseg.transforms.preprocess import RestoreRecord


@dataclass(frozen=True)
class Line:
    """For each voxel of a target axis, its two neighbours on a source axis; both ascend.

    Attributes:
        below: Index of the first.
        above: Index of the second; the first again where there is nothing to interpolate.
        weight: Of the second, 0 to 1, float32.
        resize: The axis is interpolated as a whole, from edge to edge.
    """

    below: NDArray[np.intp]
    above: NDArray[np.intp]
    weight: NDArray[np.float32]
    resize: bool = False

    @classmethod
    def between(cls, old: int, new: int, *, nearest: bool = False) -> Line:
        """From ``old`` voxels to ``new`` in the same length.

        Args:
            old: Of the source.
            new: Of the target.
            nearest: Take the nearest voxel, the later of two that are equally near.
        """
        places = (np.arange(new) + 0.5) * (old / new) - 0.5
        if nearest or old == new:
            index = np.clip(np.floor(places + 0.5), 0, old - 1).astype(np.intp)
            return cls(index, index, np.zeros(new, dtype=np.float32))
        line = cls.at(places, old)
        return cls(line.below, line.above, line.weight, resize=True)

    @classmethod
    def at(cls, places: NDArray[Any], size: int) -> Line:
        """At any ascending places, in voxels of a source of ``size``."""
        inside = np.clip(places, 0, size - 1)
        below = np.floor(inside).astype(np.intp)
        above = np.minimum(below + 1, size - 1)
        return cls(below, above, (inside - below).astype(np.float32))

    def __len__(self) -> int:
        return len(self.below)

    def ready(self, end: int) -> int:
        """How many voxels of the target need only source voxels before ``end``."""
        return int(np.searchsorted(self.above, end))

    def source(self, span: slice) -> slice:
        """What is needed of the source for a span of the target that is not empty."""
        return slice(int(self.below[span.start]), int(self.above[span.stop - 1]) + 1)

    def picks(self, span: slice, begin: int, device: torch.device) -> Picks:
        """The table of a span, for a source that begins at ``begin``."""
        below, above = self.below[span] - begin, self.above[span] - begin
        whole = bool(np.array_equal(below, above))
        same = whole and bool(np.array_equal(below, np.arange(len(below))))
        return Picks(
            torch.from_numpy(below).to(device),
            torch.from_numpy(above).to(device),
            torch.from_numpy(self.weight[span]).to(device),
            whole=whole,
            same=same,
            resize=self.resize and len(below) == len(self),
        )


@dataclass(frozen=True)
class Picks:
    """A :class:`Line`, or a span of one, on a device.

    Attributes:
        below: int64.
        above: int64.
        weight: float32.
        whole: Nothing is interpolated.
        same: The target is the begin of the source.
        resize: As of the line, and it is complete.
    """

    below: Tensor
    above: Tensor
    weight: Tensor
    whole: bool
    same: bool
    resize: bool

    def __len__(self) -> int:
        return int(self.below.shape[0])

    def part(self, span: slice) -> Picks:
        """A span of the target, of the same source."""
        below, above, weight = self.below[span], self.above[span], self.weight[span]
        same = self.same and span.start == 0
        return Picks(below, above, weight, whole=self.whole, same=same, resize=False)


def spread(values: Tensor, picks: Picks, *, dim: int) -> Tensor:
    """Interpolate along one dimension; may be a view of ``values``."""
    if picks.same:
        return values.narrow(dim, 0, len(picks))
    if picks.whole:
        return values.index_select(dim, picks.below)
    if picks.resize and dim == values.ndim - 1:
        # Many times faster than picking along the fastest dimension.
        flat = values.reshape(1, -1, values.shape[-1])
        wide = interpolate(flat, size=len(picks), mode="linear", align_corners=False)
        return wide.view(*values.shape[:-1], len(picks))
    weight = picks.weight.view(-1, *[1] * (values.ndim - 1 - dim))
    if len(picks) == 1:
        low, high = (values.narrow(dim, int(pick[0]), 1) for pick in (picks.below, picks.above))
        return torch.lerp(low, high, weight)
    low, high = (values.index_select(dim, pick) for pick in (picks.below, picks.above))
    return low.lerp_(high, weight)


def restoring_line(record: RestoreRecord, axis: int) -> Line:
    """The way back along one working axis, to the voxels of the scan's own that it covers."""
    crop, size = record.crop, record.working.shape[axis]
    whole = record.oriented.shape[axis]
    if crop is not None:
        return Line.between(size, crop[axis].stop - crop[axis].start, nearest=record.nearest[axis])
    source = record.orientation.axes[axis]
    if record.slices is None or source != 2:
        return Line.between(size, whole, nearest=record.nearest[axis])
    places: NDArray[Any] = np.asarray(record.slices.places_k, dtype=np.float64)
    if record.orientation.flips[axis]:
        places = record.original.shape[2] - 1 - places[::-1]
    return Line.at((places + 0.5) * (size / whole) - 0.5, size)
