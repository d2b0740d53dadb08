"""Connected components of label masks, all labels in one pass.

The labelling is connected-components-3d's multi-label algorithm (decision tree and
union-find; K. Wu, E. Otoo, K. Suzuki, "Two strategies to speed up connected component
labeling algorithms", 2005), which joins only neighbours of equal value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import InputError


def label_components(
    mask: NDArray[Any], connectivity: int = 26
) -> tuple[NDArray[np.unsignedinteger[Any]], int]:
    """Number the connected regions of a mask; regions of two labels are never joined.

    Args:
        mask: (I, J, K) integers or booleans, 0 is background; a 2D mask has K = 1.
        connectivity: 6 (faces), 18 (and edges) or 26 (and corners). In a 2D mask 6 means
            the four nearest pixels, 18 and 26 all eight.

    Returns:
        The components (I, J, K), 0 for background and 1 ... N for the regions, and N.

    Raises:
        InputError: The mask is not (I, J, K) integers, or the connectivity is another.
    """
    if mask.ndim != 3 or mask.dtype.kind not in "iub":
        raise InputError(
            "mask", expected="whole numbers of shape (I, J, K)", got=f"{mask.dtype} {mask.shape}"
        )
    if connectivity not in (6, 18, 26):
        raise InputError("connectivity", expected="6, 18 or 26", got=str(connectivity))
    # The labelling knows native byte order and both memory orders, but no other strides.
    native = mask.astype(mask.dtype.newbyteorder("="), copy=False)
    if not (native.flags.c_contiguous or native.flags.f_contiguous):
        native = np.ascontiguousarray(native)
    components, count = cc3d.connected_components(native, connectivity=connectivity, return_N=True)
    return components, int(count)


def keep_largest(
    mask: NDArray[Any], values: Sequence[int], *, connectivity: int = 26
) -> NDArray[Any]:
    """Keep only the largest connected region of each given label; the rest becomes 0.

    Of regions of equal size the one stays that holds the first voxel in (i, j, k) order,
    whatever the memory layout of the mask.

    Args:
        mask: (I, J, K) integers, 0 is background; a 2D mask has K = 1. Not changed.
        values: The labels to clean; other labels stay as they are.
        connectivity: 6, 18 or 26, see :func:`label_components`.

    Returns:
        A new mask of the same shape and type.

    Raises:
        InputError: The mask is not (I, J, K) integers, or the connectivity is another.
    """
    components, count = label_components(mask, connectivity)
    if count == 0:
        return mask.copy()
    sizes = cc3d.statistics(components, no_slice_conversion=True)["voxel_counts"]
    value_of = np.zeros(count + 1, dtype=mask.dtype)
    value_of[components] = mask
    keep = np.ones(count + 1, dtype=mask.dtype)
    for value in values:
        own = np.flatnonzero(value_of == value)
        own = own[own > 0]
        if own.size < 2:
            continue
        keep[own] = 0
        keep[_first_of(components, own[sizes[own] == sizes[own].max()])] = 1
    return np.asarray(mask * keep[components])


def _first_of(components: NDArray[Any], candidates: NDArray[np.intp]) -> int:
    """The candidate region that holds the first voxel in (i, j, k) order."""
    if candidates.size == 1:
        return int(candidates[0])
    # Regions are numbered in memory order, which differs between equal masks.
    wanted = np.zeros(int(components.max()) + 1, dtype=np.bool_)
    wanted[candidates] = True
    first = int(np.argmax(wanted[components].ravel(order="C")))
    return int(components[np.unravel_index(first, components.shape)])
