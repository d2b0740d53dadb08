"""Connected components of label masks, all labels in one pass.

The labelling is connected-components-3d's multi-label algorithm (decision tree and
union-find; K. Wu, E. Otoo, K. Suzuki, "Two strategies to speed up connected component
labeling algorithms", 2005), which joins only neighbours of equal value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import InputError

#: A label, or several that count as one.
Structure = int | tuple[int, ...]
Box = tuple[slice, slice, slice]
# Numpy turns indices into 64-bit numbers; a slab at a time bounds what that takes.
_SLAB_VOXELS = 1 << 20
# So many parts are looked at one by one; more are quicker by a table.
_FEW_PARTS = 20_000


def label_components(
    mask: NDArray[Any], connectivity: int = 26
) -> tuple[NDArray[np.unsignedinteger[Any]], int]:
    """Number the connected regions of a mask; regions of two labels are never joined.

    Args:
        mask: (I, J, K) integers or booleans, 0 is background; a 2D mask has K = 1.
        connectivity: 6 (faces), 18 (and edges) or 26 (and corners). In a 2D mask 6 means
            the four nearest pixels, 18 and 26 all eight; there 4 and 8 will do too.

    Returns:
        The components (I, J, K), 0 for background and 1 ... N for the regions, and N.

    Raises:
        InputError: The mask is not (I, J, K) integers, or the connectivity is another.
    """
    if mask.ndim != 3 or mask.dtype.kind not in "iub":
        raise InputError(
            "mask", expected="whole numbers of shape (I, J, K)", got=f"{mask.dtype} {mask.shape}"
        )
    if mask.shape[2] == 1:
        connectivity = {4: 6, 8: 26}.get(connectivity, connectivity)
    if connectivity not in (6, 18, 26):
        raise InputError(
            "connectivity", expected="6, 18 or 26 (flat masks: also 4 or 8)", got=str(connectivity)
        )
    # The labelling knows native byte order and both memory orders, but no other strides.
    native = mask.astype(mask.dtype.newbyteorder("="), copy=False)
    if not (native.flags.c_contiguous or native.flags.f_contiguous):
        native = np.ascontiguousarray(native)
    components, count = cc3d.connected_components(native, connectivity=connectivity, return_N=True)
    return components, int(count)


@dataclass(frozen=True)
class Parts:
    """The connected regions of a mask, and which structure each is of.

    Attributes:
        mask: (I, J, K), in which the labels of a structure have one value.
        components: (I, J, K) 0 for background, 1 ... N for the regions.
        values: The value of each structure in ``mask``.
    """

    mask: NDArray[Any]
    components: NDArray[Any]
    values: tuple[int, ...]

    @cached_property
    def _statistics(self) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = cc3d.statistics(self.components, no_slice_conversion=True)
        return found

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(N + 1,) voxels of each region."""
        return self._statistics["voxel_counts"].astype(np.int64)

    def box(self, part: int) -> Box:
        """The smallest box around a region."""
        a, b, c, d, e, f = (int(side) for side in self._statistics["bounding_boxes"][part])
        # Ends are inclusive.
        return slice(a, b + 1), slice(c, d + 1), slice(e, f + 1)

    @cached_property
    def box_sizes(self) -> NDArray[np.float64]:
        """(N + 1,) voxels of each region's box."""
        ends = self._statistics["bounding_boxes"].astype(np.float64)
        return np.asarray(np.prod(ends[:, 1::2] - ends[:, ::2] + 1, axis=1))

    @cached_property
    def value_of(self) -> NDArray[Any]:
        """(N + 1,) value of each region in ``mask``."""
        count = self.sizes.size - 1
        found = np.zeros(count + 1, dtype=self.mask.dtype)
        if count > _FEW_PARTS:
            for slab in _slabs(self.components):
                found[self.components[slab]] = self.mask[slab]
            found[0] = 0
            return found
        for part in range(1, count + 1):
            found[part] = self.mask[self.first_place(part)]
        return found

    def first_place(self, part: int) -> tuple[int, int, int]:
        """The voxel (i, j, k) of a region that comes first in this order."""
        i, j, k = self.box(part)
        plane = self.components[i.start, j, k] == part
        row, column = divmod(int(np.argmax(plane)), plane.shape[1])
        return i.start, j.start + row, k.start + column

    def of(self, structure: int) -> NDArray[np.intp]:
        """The regions of a structure, by its place in ``values``."""
        own = np.flatnonzero(self.value_of == self.values[structure])
        return own[own > 0]


def find_parts(
    mask: NDArray[Any], structures: Sequence[Structure], connectivity: int = 26
) -> Parts:
    """Number the connected regions of structures, and of the labels that are in none.

    Args:
        mask: (I, J, K) integers, 0 is background. Not changed.
        structures: Labels, or tuples of labels that count as one. No label is in two.
        connectivity: See :func:`label_components`.

    Raises:
        InputError: The mask is not (I, J, K) integers, or the connectivity is another.
    """
    groups = [tuple(s) if isinstance(s, tuple) else (int(s),) for s in structures]
    if any(len(group) > 1 for group in groups) and mask.dtype.kind in "iu":
        joined = mask.copy(order="K")
        for group in groups:
            for value in group[1:]:
                joined[mask == value] = group[0]
        mask = joined
    components, _ = label_components(mask, connectivity)
    return Parts(mask, components, tuple(group[0] for group in groups))


def keep_largest(
    mask: NDArray[Any], values: Sequence[Structure], *, connectivity: int = 26, count: int = 1
) -> NDArray[Any]:
    """Keep only the largest connected regions of each given label; the rest becomes 0.

    Of regions of equal size the one stays that holds the first voxel in (i, j, k) order,
    whatever the memory layout of the mask.

    Args:
        mask: (I, J, K) integers, 0 is background; a 2D mask has K = 1. Not changed.
        values: The labels to clean; other labels stay as they are. A tuple of labels counts
            as one structure, of which the largest region stays with all its labels.
        connectivity: See :func:`label_components`.
        count: How many regions stay.

    Returns:
        A new mask of the same shape and type.

    Raises:
        InputError: The mask is not (I, J, K) integers, or the connectivity is another.
    """
    parts = find_parts(mask, values, connectivity)
    drop = np.zeros(parts.sizes.size, dtype=np.bool_)
    for structure in range(len(values)):
        own = parts.of(structure)
        if own.size <= count:
            continue
        drop[own] = True
        drop[_largest(parts, own, count)] = False
    pieces = _pieces(parts, drop)
    if pieces is None:
        return without_parts(mask, parts, drop)
    # The numbers take four times the mask: they go before the copy comes.
    del parts
    return _without_pieces(mask, pieces)


def _largest(parts: Parts, own: NDArray[np.intp], count: int) -> list[int]:
    """The ``count`` largest of some regions; of equals those with the first voxels."""
    sizes = parts.sizes[own]
    least = np.partition(sizes, -count)[-count]
    kept, tied = own[sizes > least].tolist(), own[sizes == least].tolist()
    free = count - len(kept)
    if len(tied) > free:
        if free == 1:
            first = min(parts.box(part)[0].start for part in tied)
            tied = [part for part in tied if parts.box(part)[0].start == first]
        tied = sorted(tied, key=parts.first_place)[:free]
    return [*kept, *tied]


def without_parts(mask: NDArray[Any], parts: Parts, drop: NDArray[np.bool_]) -> NDArray[Any]:
    """A copy of a mask in which some regions are 0.

    Args:
        mask: (I, J, K), of which the parts are.
        parts: Its regions.
        drop: (N + 1,) whether each goes; the first, for background, is of no account.
    """
    pieces = _pieces(parts, drop)
    if pieces is not None:
        return _without_pieces(mask, pieces)
    result = mask.copy(order="K")
    keep = (~drop).astype(result.dtype)
    keep[0] = 1
    for slab in _slabs(result):
        result[slab] *= keep[parts.components[slab]]
    return result


def _pieces(parts: Parts, drop: NDArray[np.bool_]) -> list[tuple[Box, NDArray[np.bool_]]] | None:
    """The regions to drop, each in its box; None where a table is quicker."""
    gone = np.flatnonzero(drop)
    gone = gone[gone > 0]
    if gone.size > _FEW_PARTS or parts.box_sizes[gone].sum() > parts.mask.size:
        return None
    boxes = [parts.box(part) for part in gone.tolist()]
    return [(box, parts.components[box] == part) for box, part in zip(boxes, gone, strict=True)]


def _without_pieces(
    mask: NDArray[Any], pieces: Sequence[tuple[Box, NDArray[np.bool_]]]
) -> NDArray[Any]:
    result = mask.copy(order="K")
    for box, own in pieces:
        result[box][own] = 0
    return result


def remove_small(
    mask: NDArray[Any],
    values: Sequence[Structure],
    *,
    volume_mm3: float | Sequence[float],
    voxel_mm3: float,
    connectivity: int = 26,
) -> NDArray[Any]:
    """Remove the connected regions of the given labels that are below a volume.

    Args:
        mask: (I, J, K) integers, 0 is background. Not changed.
        values: The labels to clean; a tuple counts as one structure.
        volume_mm3: What a region must have to stay; for all, or for each structure.
        voxel_mm3: Volume of a voxel.
        connectivity: See :func:`label_components`.
    """
    parts = find_parts(mask, values, connectivity)
    drop = np.zeros(parts.sizes.size, dtype=np.bool_)
    least_mm3 = np.broadcast_to(volume_mm3, len(values))
    for structure in range(len(values)):
        own = parts.of(structure)
        # A region of exactly the volume stays, whatever the last bits of the product are.
        drop[own] = parts.sizes[own] * voxel_mm3 < least_mm3[structure] * (1 - 1e-9)
    return without_parts(mask, parts, drop)


def _slabs(array: NDArray[Any]) -> Iterator[tuple[slice, ...]]:
    """Cut an array along the slowest axis of its memory."""
    axis = int(np.argmax(np.abs(array.strides)))
    side = array.shape[axis]
    depth = max(1, _SLAB_VOXELS * side // max(1, array.size))
    for start in range(0, side, depth):
        yield tuple(
            slice(start, start + depth) if a == axis else slice(None) for a in range(array.ndim)
        )
