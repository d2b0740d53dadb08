"""Borders of labels made smooth, in mm: by a Gaussian, or by the majority in a ball."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.postprocess.places import box_of

# Beyond so many standard deviations a Gaussian adds less than a last bit of float32.
_REACH = 4.0
# Counts of a block of voxels that are held at once.
_COUNTS = 1 << 24
# Of equals the voxel's own label stays, and so it does where rounding makes them differ.
_HALF = 0.5 - 1e-6


def smooth_label(
    mask: NDArray[Any], values: Sequence[int], *, radius_mm: float, spacing_mm: Sequence[float]
) -> NDArray[Any]:
    """Smooth the borders of labels with the background, one label after another.

    A voxel belongs to the label where the label fills at least half of its surroundings,
    weighted by a Gaussian. Other labels, and what lies beyond the image, are left out of the
    surroundings: borders between labels stay, and so do those at the edge of the image.

    Args:
        mask: (I, J, K) integers, 0 is background. Not changed.
        values: The labels to smooth, in order.
        radius_mm: Standard deviation of the Gaussian, cut off at four times that.
        spacing_mm: Voxel size along I, J, K.
    """
    result = mask.copy(order="K")
    sigma = [radius_mm / step for step in spacing_mm]
    margin = [ceil(_REACH * side) + 1 for side in sigma]
    for value in values:
        box = box_of(result == value, margin=margin)
        if box is None:
            continue
        region = result[box]
        inside, free = region == value, region == 0

        def weight(part: NDArray[np.bool_]) -> NDArray[np.float32]:
            return np.asarray(
                ndimage.gaussian_filter(
                    part.astype(np.float32), sigma, mode="constant", truncate=_REACH
                )
            )

        own, rest = weight(inside), weight(free)
        wanted = own >= (own + rest) * np.where(inside, _HALF, 1.0 - _HALF)
        region[inside & ~wanted] = 0
        region[free & wanted] = value
    return result


def majority(
    mask: NDArray[Any], values: Sequence[int], *, radius_mm: float, spacing_mm: Sequence[float]
) -> NDArray[Any]:
    """Give each voxel the label that most voxels in a ball around it have.

    Background counts as a label. Labels that are not named, and what lies beyond the image,
    neither change nor count. Of equals the voxel's own label stays, else background comes first
    and then the label that is named first. No label comes to lie farther than the radius from
    where it was.

    Args:
        mask: (I, J, K) integers, 0 is background. Not changed.
        values: The labels to smooth, all at once.
        radius_mm: Of the ball; distances are between voxel centres.
        spacing_mm: Voxel size along I, J, K.
    """
    result = mask.copy(order="K")
    steps = ball(radius_mm, spacing_mm)
    reach = np.abs(steps).max(axis=0)
    box = box_of(np.isin(mask, values), margin=reach.tolist())
    if box is None or not reach.any():
        return result
    classes = [0, *values]
    # One class more stands for what does not count.
    places = np.full(mask[box].shape, len(classes), dtype=np.int32)
    for number, value in enumerate(classes):
        places[mask[box] == value] = number
    mixed = _at_borders(places, reach)
    mixed &= places < len(classes)
    sides = [(int(side), int(side)) for side in reach]
    around = np.pad(places, sides, constant_values=len(classes))
    at = np.flatnonzero(np.pad(mixed, sides))
    jumps = steps @ (np.array(around.strides) // around.itemsize)
    flat = around.ravel()
    taken = np.empty(at.size, dtype=np.int32)
    block = max(1, _COUNTS // (len(classes) + 1))
    for start in range(0, at.size, block):
        taken[start : start + block] = _most(flat, at[start : start + block], jumps, len(classes))
    region = result[box]
    region[mixed] = np.array(classes, dtype=mask.dtype)[taken]
    return result


def ball(radius_mm: float, spacing_mm: Sequence[float]) -> NDArray[np.intp]:
    """(N, 3) steps in voxels to all voxel centres within a radius, the middle among them."""
    sides = [int(radius_mm / step + 1e-9) for step in spacing_mm]
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in sides), indexing="ij"), axis=-1)
    steps = grid.reshape(-1, 3)
    away_mm = np.linalg.norm(steps * np.asarray(spacing_mm), axis=1)
    return np.asarray(steps[away_mm <= radius_mm * (1 + 1e-9)])


def _at_borders(places: NDArray[np.int32], reach: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Where the box around a ball holds more than one value; elsewhere nothing can change."""
    size = tuple(int(2 * side + 1) for side in reach)
    high = ndimage.maximum_filter(places, size=size, mode="nearest")
    return np.asarray(high != ndimage.minimum_filter(places, size=size, mode="nearest"))


def _most(
    flat: NDArray[np.int32], at: NDArray[np.intp], jumps: NDArray[np.intp], classes: int
) -> NDArray[np.intp]:
    """The class that most voxels around each of some places have."""
    width = classes + 1
    counts = np.zeros(at.size * width, dtype=np.int32)
    rows = np.arange(at.size) * width
    for jump in jumps:
        # Each row once, so that no count is lost.
        counts[rows + flat[at + jump]] += 1
    table = counts.reshape(-1, width)[:, :classes]
    own = flat[at]
    most = np.asarray(table.argmax(axis=1))
    tied = table[np.arange(at.size), own] == table[np.arange(at.size), most]
    return np.where(tied, own, most)
