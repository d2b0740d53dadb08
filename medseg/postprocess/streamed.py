"""Post-processing of masks above memory: slab by slab, equal to the mask as a whole.

Regions are numbered within each slab; those that touch across a seam are joined in a table
afterwards. Memory is bounded by a slab and a few numbers per region.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medseg.core.errors import InputError
from medseg.core.labels import LabelSet
from medseg.core.plan import PostprocessStep
from medseg.io.scratch import ScratchArray
from medseg.postprocess.components import label_components

# Labelling takes about 16 bytes for each voxel of a slab.
_SLAB_VOXELS = 1 << 23
_REACH = {6: 0, 18: 1, 26: 2}


def apply_chain_by_slab(
    mask: ScratchArray,
    steps: tuple[PostprocessStep, ...],
    labels: LabelSet,
    *,
    voxel_mm3: float | None = None,
) -> None:
    """Apply post-processing steps to a mask on the disk, in place.

    The result is that of ``chain.apply_chain`` on the whole mask.

    Args:
        mask: (I, J, K) mask values (not class indices).
        steps: What to do, in order. Labels are named as in ``labels``.
        labels: What the values mean.
        voxel_mm3: Volume of a voxel, for least volumes.

    Raises:
        LabelError: A step names a label that is not in the set.
        InputError: A step cannot be done by slab, or lacks the volume of a voxel.
        OutputError: The disk is full.
    """
    other = next((step for step in steps if not works_by_slab(step)), None)
    if other is not None:
        raise InputError(
            f"post-processing step '{other.step}' of '{other.label}'",
            expected="the largest region, a least volume or holes of one label, which can be done "
            "by slab",
            got="another step, for a mask above memory",
            cure="Allow more memory, or take the step out of the plan.",
        )
    for (kind, connectivity), group in groupby(steps, key=lambda s: (s.step, s.connectivity)):
        own: dict[int, float] = {}
        for step in group:
            value = labels.named(step.label).value
            own[value] = max(own.get(value, 0.0), step.volume_mm3 or 0.0)
        if kind == "largest":
            keep_largest_by_slab(mask, list(own), connectivity=connectivity)
        elif kind == "fill-holes":
            fill_holes_by_slab(mask, list(own))
        elif voxel_mm3 is None:
            raise InputError("least volumes", expected="the volume of a voxel", got="none")
        else:
            voxels = {value: volume_mm3 / voxel_mm3 for value, volume_mm3 in own.items()}
            remove_small_by_slab(mask, voxels, connectivity=connectivity)


def works_by_slab(step: PostprocessStep) -> bool:
    """Whether a step can be done without the whole mask."""
    single = not step.joined and step.count == 1 and step.connectivity in _REACH
    return single and step.step in ("largest", "min-volume", "fill-holes")


def keep_largest_by_slab(
    mask: ScratchArray, values: Sequence[int], *, connectivity: int = 26, depth: int | None = None
) -> None:
    """Keep only the largest connected region of each given label, in place.

    The result is that of ``components.keep_largest`` on the whole mask, ties included.

    Args:
        mask: (I, J, K) unsigned integers, 0 is background.
        values: The labels to clean; other labels stay as they are.
        connectivity: 6, 18 or 26, see ``components.label_components``.
        depth: Planes of a slab, along the slowest axis of the file; None takes what makes
            about 100 MB of memory.

    Raises:
        InputError: The connectivity is another.
        OutputError: The disk is full.
    """
    slabs = _Slabs(mask, values, connectivity, depth)
    table = _regions(slabs)
    gone = np.zeros(table.size_of.size, dtype=np.bool_)
    for value in set(values):
        own = np.flatnonzero(table.value_of == value)
        if own.size == 0:
            continue
        largest = own[table.size_of[own] == table.size_of[own].max()]
        kept = largest[0] if largest.size == 1 else _first_of(slabs, table, largest)
        gone[own] = True
        gone[kept] = False
    _paint(slabs, table, gone, 0)


def remove_small_by_slab(
    mask: ScratchArray,
    least: Mapping[int, float],
    *,
    connectivity: int = 26,
    depth: int | None = None,
) -> None:
    """Remove the connected regions below a number of voxels, in place.

    The result is that of ``components.remove_small`` on the whole mask.

    Args:
        mask: (I, J, K) unsigned integers, 0 is background.
        least: By label value, how many voxels a region must have to stay.
        connectivity: 6, 18 or 26, see ``components.label_components``.
        depth: See :func:`keep_largest_by_slab`.

    Raises:
        InputError: The connectivity is another.
        OutputError: The disk is full.
    """
    slabs = _Slabs(mask, list(least), connectivity, depth)
    table = _regions(slabs)
    gone = np.zeros(table.size_of.size, dtype=np.bool_)
    for value, voxels in least.items():
        gone |= (table.value_of == value) & (table.size_of < voxels * (1 - 1e-9))
    _paint(slabs, table, gone, 0)


def fill_holes_by_slab(
    mask: ScratchArray, values: Sequence[int], *, depth: int | None = None
) -> None:
    """Fill the background that a label encloses, in place; one label after another.

    The result is that of ``shapes.fill_holes`` on the whole mask.

    Args:
        mask: (I, J, K) unsigned integers, 0 is background.
        values: The labels to fill.
        depth: See :func:`keep_largest_by_slab`.

    Raises:
        OutputError: The disk is full.
    """
    for value in values:
        slabs = _Slabs(mask, [value], 6, depth, around=True)
        table = _regions(slabs)
        # A single voxel has no rim that would tell that nothing is around it.
        if int(table.size_of.sum()) < np.prod(mask.shape):
            _paint(slabs, table, ~table.at_rim, value)


def _paint(slabs: _Slabs, table: _Table, wanted: NDArray[np.bool_], value: int) -> None:
    """Give the voxels of some regions a value; of what lies around a label the background."""
    for number, (start, stop) in enumerate(zip(table.starts, table.starts[1:], strict=False)):
        chosen = np.concatenate([[False], wanted[table.region_of[start:stop]]])
        if chosen.any():
            voxels, _, parts, _ = slabs.labelled(number)
            there = chosen[parts]
            if slabs.around:
                there &= voxels == 0
            slabs.mask.write(slabs.box(number), np.where(there, voxels.dtype.type(value), voxels))


@dataclass(frozen=True)
class _Slabs:
    """A mask cut along the slowest axis of its file, and the regions of each slab.

    Attributes:
        mask: On the disk.
        values: The labels whose regions are wanted.
        connectivity: Of the regions.
        depth: Planes of a slab; None takes what fits.
        around: Regions are not those of a label, but of all that is not of it.
    """

    mask: ScratchArray
    values: Sequence[int]
    connectivity: int
    depth: int | None
    around: bool = False

    @property
    def axis(self) -> int:
        return self.mask.order[0]

    def starts(self) -> range:
        count = self.mask.shape[self.axis]
        plane = max(1, int(np.prod(self.mask.shape)) // count)
        return range(0, count, self.depth or max(1, _SLAB_VOXELS // plane))

    def box(self, number: int) -> tuple[slice, slice, slice]:
        starts, box = self.starts(), [slice(None)] * 3
        box[self.axis] = slice(starts[number], min(starts[number] + starts.step, starts.stop))
        return box[0], box[1], box[2]

    def labelled(self, number: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]:
        """Voxels of a slab, what of them is wanted, its regions (0 elsewhere), how many."""
        voxels = self.mask.read(self.box(number))
        table = np.zeros(int(np.iinfo(voxels.dtype).max) + 1, dtype=voxels.dtype)
        if self.around:
            table[:] = 1
            table[list(self.values)] = 0
        else:
            table[list(self.values)] = self.values
        wanted = table[voxels]
        parts, count = label_components(wanted, self.connectivity)
        return voxels, wanted, parts, count

    def parts_at_rim(self, number: int, parts: NDArray[Any]) -> NDArray[Any]:
        """The regions of a slab that lie at the edge of the whole mask; flat axes have none."""
        starts, found = self.starts(), [np.zeros(0, dtype=parts.dtype)]
        for axis, side in enumerate(self.mask.shape):
            if side == 1:
                continue
            planes = np.moveaxis(parts, axis, 0)
            if axis != self.axis or number == 0:
                found.append(np.unique(planes[0]))
            if axis != self.axis or number == len(starts) - 1:
                found.append(np.unique(planes[-1]))
        return np.unique(np.concatenate(found))


@dataclass(frozen=True)
class _Table:
    """Parts (regions within a slab, counted through all slabs) and what they join to.

    Attributes:
        starts: The first part of each slab, and at the end the number of all.
        region_of: The region of each part.
        size_of: Voxels of each region.
        value_of: Label of each region.
        at_rim: Whether each lies at the edge of the mask; looked at ``around`` labels alone.
    """

    starts: list[int]
    region_of: NDArray[np.int32]
    size_of: NDArray[np.int64]
    value_of: NDArray[Any]
    at_rim: NDArray[np.bool_]


def _regions(slabs: _Slabs) -> _Table:
    """Number the regions of the whole mask."""
    starts, sizes, labels, seams, rims = [0], [], [], [], []
    below: tuple[NDArray[Any], NDArray[Any]] | None = None
    for number in range(len(slabs.starts())):
        _, voxels, parts, count = slabs.labelled(number)
        sizes.append(np.bincount(parts.ravel(order="K"), minlength=count + 1)[1:])
        value_of = np.zeros(count + 1, dtype=voxels.dtype)
        value_of[parts] = voxels
        labels.append(value_of[1:])
        planes = np.moveaxis(parts, slabs.axis, 0)
        first, last = planes[0], planes[-1].copy()
        if below is not None:
            pairs = _touching(below[0], first, value_of[first], below[1], slabs.connectivity)
            seams.append(pairs + np.array([[starts[-2] - 1], [starts[-1] - 1]]))
        below = last, value_of[last]
        rim = np.zeros(count + 1, dtype=np.bool_)
        if slabs.around:
            rim[slabs.parts_at_rim(number, parts)] = True
        rims.append(rim[1:])
        starts.append(starts[-1] + count)
    total = starts[-1]
    edges = np.concatenate([np.zeros((2, 0), dtype=np.int64), *seams], axis=1)
    graph = coo_array((np.ones(edges.shape[1], np.bool_), (edges[0], edges[1])), (total, total))
    count, region_of = connected_components(graph, directed=False) if total else (0, np.zeros(0))
    region_of = region_of.astype(np.int32)
    value_of = np.zeros(count, dtype=slabs.mask.dtype)
    value_of[region_of] = np.concatenate(labels)
    # Sums of whole numbers in float64 are exact below 2^53.
    size_of = np.bincount(region_of, weights=np.concatenate(sizes), minlength=count)
    at_rim = np.zeros(count, dtype=np.bool_)
    at_rim[region_of[np.concatenate(rims)]] = True
    return _Table(starts, region_of, size_of.astype(np.int64), value_of, at_rim)


def _touching(
    below: NDArray[Any],
    above: NDArray[Any],
    value_above: NDArray[Any],
    value_below: NDArray[Any],
    connectivity: int,
) -> NDArray[np.int64]:
    """(2, N) parts of two planes that lie on each other and have one label."""
    step, found = int(above.max()) + 1, []
    for shift in _shifts(connectivity):
        lower, upper = _overlap(below.shape, shift)
        same = (value_below[lower] == value_above[upper]) & (below[lower] > 0)
        pairs = below[lower][same].astype(np.int64) * step + above[upper][same]
        # Neighbours are mostly of one pair: without repeats there is little to sort.
        found.append(pairs[np.flatnonzero(np.diff(pairs, prepend=-1))])
    return np.stack(np.divmod(np.unique(np.concatenate(found)), step))


def _shifts(connectivity: int) -> Iterator[tuple[int, int]]:
    """Within a plane, how far neighbours in the next plane may lie aside."""
    for first, second in product((-1, 0, 1), repeat=2):
        if abs(first) + abs(second) <= _REACH[connectivity]:
            yield first, second


def _overlap(
    shape: tuple[int, ...], shift: tuple[int, int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a plane and the same plane moved by ``shift`` cover each other."""
    lower = tuple(slice(max(0, -s), side - max(0, s)) for s, side in zip(shift, shape, strict=True))
    upper = tuple(slice(max(0, s), side - max(0, -s)) for s, side in zip(shift, shape, strict=True))
    return lower, upper


def _first_of(slabs: _Slabs, table: _Table, candidates: NDArray[np.intp]) -> int:
    """The candidate region that holds the first voxel in (i, j, k) order."""
    wanted = np.zeros(table.size_of.size, dtype=np.bool_)
    wanted[candidates] = True
    best, winner = None, int(candidates[0])
    for number in range(len(slabs.starts())):
        regions = table.region_of[table.starts[number] : table.starts[number + 1]]
        if not wanted[regions].any():
            continue
        _, _, parts, _ = slabs.labelled(number)
        lit = np.concatenate([[False], wanted[regions]])[parts]
        first = np.unravel_index(int(np.argmax(lit.ravel(order="C"))), lit.shape)
        place = [int(at) for at in first]
        region = int(regions[parts[first] - 1])
        place[slabs.axis] += slabs.starts()[number]
        if best is None or place < best:
            best, winner = place, region
    return winner
