"""A scan seen from afar: small enough to compare every case with every other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SIDE_3D, _SIDE_2D = 24, 64
_PROFILE_EDGE = 0.01
_BODY_LEVEL = 0.1


def thumbnail(voxels: NDArray[Any]) -> NDArray[np.float32]:
    """Block means of a scan (C, I, J, K) in RAS+ order, all channels in one.

    Returns:
        (n,) of mean 0 and length 1: the product of two is their correlation. All volumes have
        one n, all 2D images another.
    """
    mean = voxels[0] if len(voxels) == 1 else voxels.mean(axis=0, dtype=np.float32)
    sides = (_SIDE_2D, _SIDE_2D, 1) if mean.shape[2] == 1 else (_SIDE_3D,) * 3
    small = np.asarray(mean, dtype=np.float32)
    # The axis that is slowest in memory first: what is added up lies in one piece.
    order = sorted(range(3), key=lambda axis: -abs(small.strides[axis]))
    small = small.transpose(order)
    for axis in order:
        small = _block_means(small, sides[axis]).transpose(1, 2, 0)
    flat = small.transpose(np.argsort(order)).ravel() - small.mean(dtype=np.float64)
    # No BLAS: its threads take longer to wake than this takes, and spin on when it is done.
    length = math.sqrt(float(np.square(flat).sum()))
    return np.asarray(flat / length if length else flat, dtype=np.float32)


def details(small: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is left of thumbnails (cases, n) without their blur: cases of one region look alike
    from afar, and differ in this. Rows of mean 0 and length 1 again."""
    flat = small.shape[1] == _SIDE_2D**2
    sides = (_SIDE_2D, _SIDE_2D) if flat else (_SIDE_3D,) * 3
    pictures = small.reshape(-1, *sides)
    blurred = pictures
    for axis in range(1, pictures.ndim):
        blurred = _blurred(blurred, axis)
    rows = (pictures - blurred).reshape(small.shape)
    rows -= rows.mean(axis=1, keepdims=True)
    lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return np.asarray(rows / lengths, dtype=np.float32)


def _blurred(array: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Means of three neighbours along an axis; beyond the ends their own value counts on."""
    source = array.swapaxes(0, axis)
    sums = source.copy()
    sums[1:] += source[:-1]
    sums[0] += source[0]
    sums[:-1] += source[1:]
    sums[-1] += source[-1]
    return np.asarray(sums.swapaxes(0, axis) / np.float32(3), dtype=np.float32)


def body_box(voxels: NDArray[Any]) -> NDArray[np.float64]:
    """Where the body begins and ends along each axis, as shares of the field of view.

    The body is what is brighter than a tenth of the way from dark to bright (percentiles 1
    and 99); a hundredth of it may lie outside on either side.

    Args:
        voxels: (C, I, J, K); the first channel counts.

    Returns:
        (2, 3): lower and upper ends.
    """
    first = voxels[0]
    step = tuple(slice(None, None, max(1, side // 64)) for side in first.shape)
    small = np.asarray(first[step], dtype=np.float32)
    # An odd step, so that it falls on other places of each row; a few thousand are enough.
    low, high = percentiles(small.ravel()[:: max(1, small.size // 10_000) | 1], (1, 99))
    inside = small > low + _BODY_LEVEL * (high - low)
    box = np.array([[0.0] * 3, [1.0] * 3])
    if not inside.any():
        return box
    for axis in range(3):
        profile = inside.sum(axis=tuple(other for other in range(3) if other != axis))
        share = np.cumsum(profile) / profile.sum()
        first_slice = int(np.searchsorted(share, _PROFILE_EDGE))
        last_slice = int(np.searchsorted(share, 1 - _PROFILE_EDGE))
        box[:, axis] = first_slice / len(share), (last_slice + 1) / len(share)
    return box


def percentiles(values: NDArray[Any], shares: tuple[float, ...]) -> NDArray[np.float64]:
    """Percentiles of (n,) numbers, as ``np.percentile`` gives them, by one sort: of a few
    thousand numbers that is several times faster."""
    ordered = np.sort(values)
    places = np.asarray(shares, dtype=np.float64) / 100.0 * (len(ordered) - 1)
    below = np.floor(places).astype(np.intp)
    low = ordered[below].astype(np.float64)
    high = ordered[np.minimum(below + 1, len(ordered) - 1)].astype(np.float64)
    return np.asarray(low + (high - low) * (places - below))


def _block_means(array: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Means of blocks along the first axis, some tenfold faster than ``np.add.reduceat``."""
    size = len(array)
    starts = np.arange(side) * size // side
    lengths = np.maximum(np.diff(np.append(starts, size)), 1)
    sums = array[starts]
    for step in range(1, int(lengths.max())):
        longer = np.flatnonzero(lengths > step)
        if len(longer) == side:
            sums += array[starts + step]
        else:
            sums[longer] += array[starts[longer] + step]
    return np.asarray(sums / lengths[:, None, None].astype(np.float32), dtype=np.float32)
