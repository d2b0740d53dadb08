"""Touching bodies told apart at their necks, by a watershed of the distance to their border.

Each voxel climbs to its steepest neighbour until it stands on a peak; the voxels that end on one
peak are a basin. Basins are then joined from the highest pass downwards, unless the lower of
the two peaks stands far enough above the pass: what remains are the regions of the peaks that
an h-maxima transform would leave (L. Najman, M. Schmitt, "Geodesic saliency of watershed
contours and hierarchical segmentation", 1996; P. Soille, "Morphological Image Analysis", 2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Passes:
    """Basins of a height map, and where one goes over into another.

    Attributes:
        places: (V,) flat index of each voxel above 0.
        basins: (V,) the basin of each, from 0.
        peaks: (B,) the height of each basin's peak.
        pairs: (2, P) basins that touch.
        heights: (P,) of the highest pass between them.
    """

    places: NDArray[np.intp]
    basins: NDArray[np.intp]
    peaks: NDArray[np.float32]
    pairs: NDArray[np.intp]
    heights: NDArray[np.float32]


def split_at_necks(
    heights: NDArray[np.float32],
    spacing_mm: Sequence[float],
    *,
    share: float = 1.0,
    depth: float = 0.0,
) -> NDArray[np.int32]:
    """Divide what is above 0 into the regions of its peaks.

    Two peaks are told apart where the pass between them is at most ``share`` of the lower peak,
    and at least ``depth`` below it. With ``share`` 1 these are the h-maxima with h = ``depth``.

    Args:
        heights: (I, J, K); 0 is background. Voxels touch over faces, edges and corners.
        spacing_mm: Voxel size along I, J, K.
        share: Above 0, at most 1.
        depth: As the heights are; above 0 wherever plateaus are to stay whole.

    Returns:
        (I, J, K) regions from 1, in no order; 0 for background.
    """
    found = _passes(heights, spacing_mm)
    regions = _joined(found, share, depth)
    result = np.zeros(heights.size, dtype=np.int32)
    _, numbers = np.unique(regions, return_inverse=True)
    result[found.places] = numbers[found.basins] + 1
    return result.reshape(heights.shape)


def _passes(heights: NDArray[np.float32], spacing_mm: Sequence[float]) -> Passes:
    """Basins by steepest ascent, and the highest pass between any two that touch."""
    around = np.pad(np.ascontiguousarray(heights), 1)
    flat = around.ravel()
    at = np.flatnonzero(flat > 0)
    number = np.full(flat.size, -1, dtype=np.int32)
    number[at] = np.arange(at.size, dtype=np.int32)
    strides = np.array(around.strides) // around.itemsize
    steps = [np.array(step) for step in product((-1, 0, 1), repeat=3) if any(step)]
    own = flat[at]
    steepest, goal = np.zeros(at.size, np.float32), np.arange(at.size, dtype=np.int32)
    for step in steps:
        jump = int(step @ strides)
        slope = (flat[at + jump] - own) / np.float32(np.linalg.norm(step * np.asarray(spacing_mm)))
        better = slope > steepest
        steepest[better], goal[better] = slope[better], number[at[better] + jump]
    while not np.array_equal(further := goal[goal], goal):
        goal = further
    peaks, basins = np.unique(goal, return_inverse=True)
    sides: list[NDArray[Any]] = [np.zeros((2, 0), dtype=np.intp)]
    lows: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)]
    for jump in (int(step @ strides) for step in steps):
        if jump < 0:
            continue
        other = number[at + jump]
        here = np.flatnonzero(other >= 0)
        there = other[here]
        apart = basins[here] != basins[there]
        here, there = here[apart], there[apart]
        sides.append(np.sort(np.stack([basins[here], basins[there]]), axis=0))
        lows.append(np.minimum(own[here], own[there]))
    pairs, heights_of = _highest(np.concatenate(sides, axis=1), np.concatenate(lows), len(peaks))
    inner = np.stack(np.unravel_index(at, around.shape)) - 1
    places = np.ravel_multi_index(tuple(inner), heights.shape)
    return Passes(places, basins, own[peaks], pairs, heights_of)


def _highest(
    pairs: NDArray[Any], heights: NDArray[np.float32], basins: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Each pair once, with the highest of its passes."""
    keys, which = np.unique(pairs[0].astype(np.int64) * basins + pairs[1], return_inverse=True)
    highest = np.zeros(keys.size, dtype=np.float32)
    np.maximum.at(highest, which, heights)
    return np.stack(np.divmod(keys, max(1, basins))), highest


def _joined(found: Passes, share: float, depth: float) -> NDArray[np.intp]:
    """(B,) the basin, one for all, that each basin is joined to."""
    root = list(range(len(found.peaks)))
    peaks = found.peaks.tolist()

    def top(basin: int) -> int:
        while root[basin] != basin:
            root[basin] = root[root[basin]]
            basin = root[basin]
        return basin

    order = np.argsort(-found.heights, kind="stable")
    passes = zip(*found.pairs[:, order].tolist(), found.heights[order].tolist(), strict=True)
    for first, second, height in passes:
        low, high = sorted((top(first), top(second)), key=lambda basin: (peaks[basin], -basin))
        apart = height <= share * peaks[low] and peaks[low] - height >= depth
        if low != high and not apart:
            root[low] = high
    return np.array([top(basin) for basin in range(len(root))], dtype=np.intp)
