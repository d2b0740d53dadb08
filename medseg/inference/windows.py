"""How patches cover a volume: pure arithmetic, no network."""

from __future__ import annotations

from itertools import product
from math import ceil

import numpy as np
from numpy.typing import NDArray

Triple = tuple[int, int, int]


def window_starts(size: int, patch: int, step: float) -> tuple[int, ...]:
    """Starts of windows along one axis: first at 0, last at the end, evenly between.

    Args:
        size: Voxels of the volume; at least ``patch``.
        patch: Voxels of a window.
        step: The largest step, as a share of the window.
    """
    if size < patch:
        raise ValueError(f"size {size} is smaller than the window {patch}")
    room = size - patch
    count = ceil(room / max(1.0, patch * step)) + 1
    return tuple(int(start) for start in np.round(np.linspace(0, room, count)))


def windows(shape: Triple, patch: Triple, step: float) -> list[Triple]:
    """Starts (i, j, k) of all windows over a volume, first axis slowest."""
    axes = [window_starts(s, p, step) for s, p in zip(shape, patch, strict=True)]
    return [(i, j, k) for i, j, k in product(*axes)]


def padding(shape: Triple, patch: Triple) -> tuple[tuple[int, int], ...]:
    """Voxels to add before and after each axis, so that a window fits; centred."""
    missing = [max(0, p - s) for s, p in zip(shape, patch, strict=True)]
    return tuple((gap // 2, gap - gap // 2) for gap in missing)


def gaussian_weights(patch: Triple, sigma: float) -> NDArray[np.float32]:
    """Importance of each voxel of a window, 1 at its centre, never 0.

    Args:
        patch: Shape of the window.
        sigma: Standard deviation as a share of each side.

    Source: the weighting of nnU-Net (Isensee et al., Nature Methods 18, 2021).
    """
    weights = np.ones((1, 1, 1))
    for axis, side in enumerate(patch):
        offset = np.arange(side) - (side - 1) / 2
        bell = np.exp(-0.5 * (offset / (sigma * side)) ** 2)
        weights = weights * np.expand_dims(bell, [other for other in range(3) if other != axis])
    # Far corners would weigh next to nothing; where only they cover, rounding would show.
    return np.maximum(weights, 1e-3).astype(np.float32)
