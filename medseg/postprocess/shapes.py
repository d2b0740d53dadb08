"""The shape of single labels: holes filled, thin parts opened, gaps closed, in mm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.postprocess.distances import distance_transform
from medseg.postprocess.places import box_of

# Distances are float32: what is exactly as far as the radius may come out some last bits above.
_SLACK = 1 + 1e-6
Inside = NDArray[np.bool_]


def fill_holes(
    mask: NDArray[Any], values: Sequence[int], *, slice_axis: int | None = None
) -> NDArray[Any]:
    """Fill the background that a label encloses: what no path over faces leads out of.

    Args:
        mask: (I, J, K) integers, 0 is background; a flat mask has an axis of length 1, along
            which nothing leads out. Not changed.
        values: The labels to fill, in order; other labels within them stay.
        slice_axis: Look at each slice across this axis by itself; None looks at the volume.
    """
    result = mask.copy(order="K")
    closed = [axis for axis in range(3) if mask.shape[axis] == 1 or axis == slice_axis]
    step = ndimage.generate_binary_structure(3, 1)
    for axis in closed:
        step[tuple(_ends(axis, 0))] = step[tuple(_ends(axis, 2))] = False
    for value in values:
        box = box_of(result == value)
        if box is None:
            continue
        outside = np.ascontiguousarray(result[box] != value)
        margins = [(0, 0) if axis in closed else (1, 1) for axis in range(3)]
        padded = np.pad(outside, margins, constant_values=True)
        rim = np.zeros_like(padded)
        for axis in set(range(3)) - set(closed):
            rim[tuple(_ends(axis, 0))] = rim[tuple(_ends(axis, -1))] = True
        leads_out = ndimage.binary_propagation(rim, step, mask=padded)
        cut = tuple(slice(low, -high or None) for low, high in margins)
        holes = (padded & ~leads_out)[cut]
        result[box][holes & (result[box] == 0)] = value
    return result


def open_label(
    mask: NDArray[Any], values: Sequence[int], *, radius_mm: float, spacing_mm: Sequence[float]
) -> NDArray[Any]:
    """Remove what is thinner than a ball: erosion by its radius, then dilation.

    Where the image ends the label counts as going on. Distances are between voxel centres.

    Args:
        mask: (I, J, K) integers, 0 is background. Not changed.
        values: The labels to open.
        radius_mm: Of the ball.
        spacing_mm: Voxel size along I, J, K.
    """

    def opened(inside: Inside) -> Inside:
        core = ~_within(inside, radius_mm, spacing_mm)
        return inside & _within(~core, radius_mm, spacing_mm)

    return _reshaped(mask, values, opened, radius_mm=radius_mm, spacing_mm=spacing_mm)


def close_label(
    mask: NDArray[Any], values: Sequence[int], *, radius_mm: float, spacing_mm: Sequence[float]
) -> NDArray[Any]:
    """Fill gaps that are narrower than a ball: dilation by its radius, then erosion.

    Only background is filled; other labels stay.

    Args:
        mask: (I, J, K) integers, 0 is background. Not changed.
        values: The labels to close.
        radius_mm: Of the ball.
        spacing_mm: Voxel size along I, J, K.
    """

    def closed(inside: Inside) -> Inside:
        grown = _within(~inside, radius_mm, spacing_mm)
        return inside | ~_within(grown, radius_mm, spacing_mm)

    return _reshaped(mask, values, closed, radius_mm=radius_mm, spacing_mm=spacing_mm)


def _reshaped(
    mask: NDArray[Any],
    values: Sequence[int],
    change: Callable[[Inside], Inside],
    *,
    radius_mm: float,
    spacing_mm: Sequence[float],
) -> NDArray[Any]:
    result = mask.copy(order="K")
    # Twice the radius: what is grown must not meet the end of the box.
    margin = [2 * ceil(radius_mm / step) + 2 for step in spacing_mm]
    for value in values:
        box = box_of(result == value, margin=margin)
        if box is None:
            continue
        inside = result[box] == value
        wanted = change(inside)
        result[box][inside & ~wanted] = 0
        result[box][wanted & (result[box] == 0)] = value
    return result


def _within(inside: Inside, radius_mm: float, spacing_mm: Sequence[float]) -> Inside:
    """Whether each voxel is at most so far from the nearest that is not inside."""
    if inside.all():
        return np.zeros(inside.shape, dtype=np.bool_)
    away_mm = distance_transform(~inside, spacing_mm)
    return np.asarray(away_mm <= radius_mm * _SLACK)


def _ends(axis: int, end: int) -> list[slice | int]:
    return [end if a == axis else slice(None) for a in range(3)]
