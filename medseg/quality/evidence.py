"""Does a mask fit its scan better when it is moved? The scan itself is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import MedsegError
from medseg.datasets.dataset import Case
from medseg.datasets.reading import read_case_image, read_case_mask

# A structure is more of one brightness than what lies beside it, and ends at an edge: a mask
# that lies wrong gains this much on both where it belongs. Measured: planted shifts and flips
# gain 1.7 and more together on phantoms; of the suspects among sound real masks none gained in
# 208 MR volumes, and two of 131 single slices did.
_CLEARLY, _NOT_BLURRED, _TOGETHER = 1.15, 0.8, 1.3


def fits_better(case: Case, move: Callable[[NDArray[Any]], NDArray[Any]]) -> bool:
    """Whether a move makes the labels clearly more uniform and brings their borders onto edges.

    Args:
        case: Read again here; only suspects are asked.
        move: Takes and gives a mask (I, J, K) in RAS+ order.
    """
    try:
        scan = read_case_image(case)
        turn = scan.geometry.orientation_to_ras()
        image = turn.apply(scan.voxels()[0])
        mask, grid = read_case_mask(case)
    except MedsegError:
        return False
    if scan.geometry.difference(grid.geometry) is not None:
        return False
    mask = turn.apply(mask)
    low, high = np.percentile(image[:: max(1, image.shape[0] // 64)], [1, 99])
    image = np.clip(image.astype(np.float32), low, high)
    there = move(mask)
    after, step = spread_inside(image, there), border_step(image, mask)
    if not after or not step:
        return False
    calmer = spread_inside(image, mask) / after
    sharper = border_step(image, there) / step
    # A shift is known to a voxel or two, so that borders may still miss their edges a little.
    return calmer > _CLEARLY and sharper > _NOT_BLURRED and calmer * sharper > _TOGETHER


def mirrored(mask: NDArray[Any], axis: int) -> NDArray[Any]:
    """A mask (I, J, K) mirrored in its field of view."""
    return np.asarray(np.flip(mask, axis))


def shifted(mask: NDArray[Any], steps: tuple[int, int, int]) -> NDArray[Any]:
    """A mask (I, J, K) moved by whole voxels; what leaves the field of view is lost."""
    result = np.zeros_like(mask)
    source = tuple(slice(max(0, -s), min(n, n - s)) for s, n in zip(steps, mask.shape, strict=True))
    target = tuple(slice(max(0, s), min(n, n + s)) for s, n in zip(steps, mask.shape, strict=True))
    result[target] = mask[source]
    return result


def spread_inside(image: NDArray[Any], mask: NDArray[Any]) -> float:
    """Standard deviation of intensities inside the labels, mean over voxels; 0 without labels.

    Args:
        image: (I, J, K).
        mask: (I, J, K) integers.
    """
    where = np.flatnonzero(mask)
    if not where.size:
        return 0.0
    values = image.ravel()[where].astype(np.float64)
    labels = mask.ravel()[where]
    counts = np.maximum(np.bincount(labels), 1)
    means = np.bincount(labels, weights=values) / counts
    squares = np.bincount(labels, weights=(values - means[labels]) ** 2)
    return float((np.sqrt(squares / counts) * counts).sum() / where.size)


def border_step(image: NDArray[Any], mask: NDArray[Any]) -> float:
    """Mean step of intensity from voxel to voxel across the borders of labels; 0 without any."""
    total, faces = 0.0, 0
    for axis in range(3):
        across = np.diff(mask.astype(np.int32), axis=axis) != 0
        total += float(np.abs(np.diff(image, axis=axis)[across]).sum(dtype=np.float64))
        faces += int(across.sum())
    return total / faces if faces else 0.0
