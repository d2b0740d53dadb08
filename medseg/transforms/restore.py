"""From the network's grid back to the scan's own, block by block as they are done.

Logits are interpolated and reduced to labels a few planes at a time, so that no array of all
classes is held at full size. Where the neighbours of a voxel agree on the winner nothing is
interpolated: a convex combination keeps the order of its terms, so the winner is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.core.geometry import Orientation
from medseg.transforms.lines import Picks, restoring_line, spread
from medseg.transforms.preprocess import RestoreRecord
from medseg.transforms.resample import sample_rows
from medseg.transforms.winners import Activation, class_dtype, labels_between, winners

Triple = tuple[int, int, int]
Box = tuple[slice, slice, slice]

# Values (classes x voxels) that are worked on at a time, beside the block itself.
_SLAB_VALUES = {"cpu": 8_000_000, "cuda": 64_000_000}
_GROUP_VALUES = {"cpu": 1_000_000, "cuda": 64_000_000}


class Sink(Protocol):
    """Where restored values go.

    Contract: boxes do not overlap; what is never written is 0. ``box`` counts on the grid of
    ``record.target``, with start and stop given; ``values`` has its shape.
    """

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Take the values of a box."""
        ...


class ArraySink:
    """A :class:`Sink` in memory.

    Attributes:
        array: What was written, zero elsewhere.
    """

    def __init__(self, shape: Triple, dtype: Any) -> None:
        self.array: NDArray[Any] = np.zeros(shape, dtype=dtype)

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Take the values of a box."""
        self.array[box] = values


@dataclass(frozen=True)
class Outlet:
    """What else than labels is made of the restored logits.

    Attributes:
        values: (channels, ...) restored logits to one (...) of any type for each sink.
        sinks: Where they go.
    """

    values: Callable[[Tensor], Sequence[Tensor]]
    sinks: Sequence[Sink]


def restore_classes(
    logits: Tensor, record: RestoreRecord, *, activation: Activation = "softmax"
) -> NDArray[Any]:
    """Class indices on the scan's own grid, of logits that are there as a whole.

    Args:
        logits: (classes, I, J, K) on ``record.working``.
        record: From ``preprocess_scan``.
        activation: See :func:`winners`.

    Returns:
        (I, J, K) uint8 (uint16 above 256 classes) on ``record.target``, contiguous.
    """
    classes = int(logits.shape[0])
    sink = ArraySink(record.target.shape, class_dtype(classes + (activation == "regions")))
    restorer = Restorer(record, (0, 1, 2), sink, activation=activation)
    restorer(logits, (0, 0, 0))
    restorer.finish()
    return sink.array


def is_axis_parallel(record: RestoreRecord) -> bool:
    """Whether restoring goes axis by axis, since the working axes are the scan's own."""
    if record.crop is not None and record.slices is not None:
        return False
    turned = record.original.reoriented(record.orientation)
    return turned.difference(record.oriented) is None


def working_bytes(record: RestoreRecord, order: Triple, channels: int, *, width: int) -> int:
    """What a :class:`Restorer` holds at most beside the block that it is given.

    Args:
        record: As of the restorer.
        order: As of the restorer.
        channels: Of a block.
        width: Bytes of one of its values.
    """
    _, b, c = order
    plane = channels * record.working.shape[b] * record.working.shape[c]
    slab = min(_SLAB_VALUES["cpu"] + plane, plane * record.working.shape[order[0]])
    group = min(slab, max(_GROUP_VALUES["cpu"], plane))
    larger = record.oriented.shape[b] * record.oriented.shape[c] / (plane / channels)
    return int(plane * width + 4 * slab + 4 * group * (2 + 3 * larger))


class Restorer:
    """Takes blocks of logits on the working grid, gives labels on the scan's own.

    Contract: blocks come as :class:`medseg.inference.accumulator.Accumulator` sends them: cut
    along ``order[0]`` and ``order[1]``, ordered by the first and then the second, whole along
    ``order[2]``. Of what has passed only one plane and one row are held.

    Args:
        record: From ``preprocess_scan``.
        order: The working axes, from the slowest that blocks come along to the fastest.
        sink: Where class indices go.
        activation: See :func:`winners`.
        classes: How many channels are classes; None for all. The rest is for the outlet alone.
        outlet: What else is made of the logits.
    """

    def __init__(
        self,
        record: RestoreRecord,
        order: Triple,
        sink: Sink,
        *,
        activation: Activation = "softmax",
        classes: int | None = None,
        outlet: Outlet | None = None,
    ) -> None:
        self.order, self.activation, self.classes = order, activation, classes
        self.sink, self.outlet = sink, outlet
        self._whole = None if is_axis_parallel(record) else _Whole(record, self)
        self._turn = _Turn.of(record, order)
        self._lines = [restoring_line(record, axis) for axis in order]
        self._depth, self._size = (record.working.shape[axis] for axis in order[:2])
        # Up to where, along the first and the second axis, voxels of the target are done.
        self._done = [0, 0]
        self._plane: Tensor | None = None
        self._row: Tensor | None = None

    def __call__(self, block: Tensor, corner: Triple) -> None:
        """Take a block (channels, i, j, k) that begins at voxel ``corner``."""
        if self._whole is not None:
            self._whole.keep(block, corner)
            return
        a, b, c = self.order
        turned = block.permute(0, 1 + a, 1 + b, 1 + c)
        begin = (corner[a], corner[b])
        ends = (begin[0] + int(turned.shape[1]), begin[1] + int(turned.shape[2]))
        first, second = (
            slice(done, line.ready(end))
            for done, line, end in zip(self._done, self._lines, ends, strict=False)
        )
        if second.stop > second.start:
            self._restore(turned, begin, first, second)
        self._keep(turned, begin, last=ends[1] == self._size)
        self._done = [first.stop, 0] if ends[1] == self._size else [first.start, second.stop]

    def finish(self) -> None:
        """After the last block."""
        if self._whole is not None:
            self._whole.restore()

    def _restore(self, block: Tensor, begin: tuple[int, int], first: slice, second: slice) -> None:
        line, across, along = self._lines
        rows, device = across.source(second), block.device
        wide = along.picks(slice(0, len(along)), 0, device)
        across_picks = across.picks(second, rows.start, device)
        budget = _SLAB_VALUES.get(device.type, _SLAB_VALUES["cpu"])
        values = int(block.shape[0]) * (rows.stop - rows.start) * int(block.shape[3])
        # In planes of the source, so that a block is gone through evenly.
        depth = max(1, int(budget / values * len(line) / self._depth))
        for start in range(first.start, first.stop, depth):
            planes = slice(start, min(start + depth, first.stop))
            source = line.source(planes)
            slab = self._assemble(block, begin, source, rows)
            picks = (line.picks(planes, source.start, device), across_picks, wide)
            self._write(slab, (planes, second), picks)

    def _assemble(
        self, block: Tensor, begin: tuple[int, int], planes: slice, rows: slice
    ) -> Tensor:
        """(channels, planes, rows, c) float32 of the working grid, contiguous."""
        a0, b0 = begin
        slab = torch.empty(
            (block.shape[0], planes.stop - planes.start, rows.stop - rows.start, block.shape[3]),
            device=block.device,
        )
        x, y = int(planes.start < a0), int(rows.start < b0)
        inner = slice(max(rows.start, b0) - b0, rows.stop - b0)
        slab[:, x:, y:] = block[:, max(planes.start, a0) - a0 : planes.stop - a0, inner]
        if x:
            assert self._plane is not None
            slab[:, 0, y:] = self._plane[:, max(rows.start, b0) : rows.stop]
        if y:
            assert self._row is not None
            # Its first entry is the plane before this block.
            slab[:, :, 0] = self._row[:, planes.start - a0 + 1 : planes.stop - a0 + 1]
        return slab

    def _keep(self, block: Tensor, begin: tuple[int, int], *, last: bool) -> None:
        """Hold the last row and the last plane for the blocks that come next."""
        b0, side = begin[1], int(block.shape[2])
        if self._plane is None:
            self._plane = block.new_zeros((block.shape[0], self._size, block.shape[3]))
        before = self._plane[:, b0 + side - 1].clone()
        self._row = None if last else torch.cat([before[:, None], block[:, :, -1]], dim=1)
        self._plane[:, b0 : b0 + side] = block[:, -1]

    def _write(
        self, slab: Tensor, place: tuple[slice, slice], lines: tuple[Picks, Picks, Picks]
    ) -> None:
        first, second = place
        shape = (first.stop - first.start, second.stop - second.start, len(lines[2]))
        classes = int(slab.shape[0]) if self.classes is None else self.classes
        dtype = class_dtype(classes + (self.activation == "regions"))
        labels = np.empty(shape, dtype=dtype)
        extra: list[NDArray[Any]] = []
        budget = _GROUP_VALUES.get(slab.device.type, _GROUP_VALUES["cpu"])
        group = max(1, budget // (slab[:, 0].numel()))
        for start in range(0, shape[0], group):
            part = slice(start, min(start + group, shape[0]))
            planes = spread(slab, lines[0].part(part), dim=1)
            if self.outlet is not None:
                full = spread(spread(planes, lines[1], dim=2), lines[2], dim=3)
                found = winners(full[:classes], self.activation)
                made = [one.cpu().numpy() for one in self.outlet.values(full)]
                if not extra:
                    extra = [np.empty(shape, dtype=one.dtype) for one in made]
                for whole, one in zip(extra, made, strict=True):
                    whole[part] = one
            else:
                found = labels_between(planes, lines[1], lines[2], activation=self.activation)
            labels[part] = found.cpu().numpy()
        self._turn.write(self.sink, place, labels)
        if self.outlet is not None:
            for sink, values in zip(self.outlet.sinks, extra, strict=True):
                self._turn.write(sink, place, values)


@dataclass(frozen=True)
class _Turn:
    """From the order of the work to the axes of the target."""

    order: Triple
    crop: Box
    shape: Triple
    back: Orientation

    @classmethod
    def of(cls, record: RestoreRecord, order: Triple) -> _Turn:
        shape = tuple(record.target.shape[axis] for axis in record.orientation.axes)
        whole = slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])
        return cls(
            order,
            record.crop or whole,
            (shape[0], shape[1], shape[2]),
            record.orientation.inverse(),
        )

    def write(self, sink: Sink, place: tuple[slice, slice], values: NDArray[Any]) -> None:
        """Write (a, b, c) values whose place along a and b counts from the crop's corner."""
        spans = dict(zip(self.order, (*place, None), strict=True))
        oriented = []
        for axis in range(3):
            span, low = spans[axis], self.crop[axis].start
            whole = self.crop[axis].stop - low
            start, stop = (0, whole) if span is None else (span.start, span.stop)
            oriented.append(slice(low + start, low + stop))
        box = tuple(
            slice(self.shape[axis] - oriented[axis].stop, self.shape[axis] - oriented[axis].start)
            if flip
            else oriented[axis]
            for axis, flip in zip(self.back.axes, self.back.flips, strict=True)
        )
        natural = np.transpose(values, [self.order.index(axis) for axis in range(3)])
        sink.write((box[0], box[1], box[2]), self.back.apply(natural))


class _Whole:
    """The way back to grids that the working axes do not follow: all logits are held."""

    def __init__(self, record: RestoreRecord, parent: Restorer) -> None:
        self.record, self.parent = record, parent
        self._logits: Tensor | None = None

    def keep(self, block: Tensor, corner: Triple) -> None:
        if self._logits is None:
            self._logits = block.new_empty((block.shape[0], *self.record.working.shape))
        box = [slice(c, c + int(n)) for c, n in zip(corner, block.shape[1:], strict=True)]
        self._logits[:, *box] = block

    def restore(self) -> None:
        logits, record, parent = self._logits, self.record, self.parent
        assert logits is not None
        shape = record.target.shape
        matrix = np.linalg.solve(record.working.affine_ras, record.original.affine_ras)
        last = None if record.slices is None else record.slices.places_k
        channels = int(logits.shape[0])
        classes = channels if parent.classes is None else parent.classes
        dtype = class_dtype(classes + (parent.activation == "regions"))
        inside = logits.new_ones((1, *logits.shape[1:])) if record.crop else None
        depth = max(1, _SLAB_VALUES["cpu"] // (channels * shape[1] * shape[2]))
        for start in range(0, shape[0], depth):
            rows = slice(start, min(start + depth, shape[0]))
            box = (rows, slice(0, shape[1]), slice(0, shape[2]))
            slab = sample_rows(
                logits, matrix, shape, rows=rows, nearest=all(record.nearest), fill=None, last=last
            ).float()
            found = winners(slab[:classes], parent.activation)
            there: Tensor | bool = True
            if inside is not None:
                near = sample_rows(inside, matrix, shape, rows=rows, nearest=True, last=last)
                there = near[0] > 0
                found = found * there
            parent.sink.write(box, found.cpu().numpy().astype(dtype))
            if parent.outlet is not None:
                for sink, values in zip(
                    parent.outlet.sinks, parent.outlet.values(slab), strict=True
                ):
                    sink.write(box, (values * there).cpu().numpy())
