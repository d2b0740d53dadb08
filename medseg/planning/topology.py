"""Patch, poolings and kernels of a grid.

The rules follow nnU-Net (Isensee et al., Nature Methods 18, 2021).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.plan import Triple

_SMALLEST_SIDE = 4
_MOST_STAGES = 6


def patch_and_strides(
    shape: Triple, spacing_mm: tuple[float, float, float], voxels: int
) -> tuple[Triple, tuple[Triple, ...], tuple[Triple, ...]]:
    """Patch, stride into each stage and kernel of each stage.

    Args:
        shape: Typical scan on the working grid; a side of 1 is never pooled.
        spacing_mm: Of the working grid.
        voxels: Most voxels of the patch, before it is rounded up to what pooling needs.

    Returns:
        At least two stages, but for a patch of a single voxel: a patch too short to be halved
        is lengthened along its fine axes.
    """
    spacing, sides = np.array(spacing_mm), np.array(shape, dtype=np.float64)
    patch = _fit_patch(sides, spacing, voxels)
    strides: list[Triple] = [(1, 1, 1)]
    kernels: list[Triple] = [_kernel(spacing, patch)]
    current, scale = patch.copy(), spacing.copy()
    while len(strides) < _MOST_STAGES:
        roomy = current / 2 >= _SMALLEST_SIDE
        if not roomy.any():
            break
        # Coarse axes wait until the fine ones have caught up.
        pool = roomy & (scale < 2 * scale[roomy].min())
        step = np.where(pool, 2, 1)
        current, scale = current / step, scale * step
        strides.append(as_triple(step))
        # Once it is 3 it stays 3, also where an axis is too short to be pooled further.
        kernels.append(as_triple(np.maximum(kernels[-1], _kernel(scale, patch))))
    if len(strides) == 1 and (patch > 1).any():
        patch, step = _halved_once(patch, spacing)
        strides.append(as_triple(step))
        kernels.append(as_triple(np.maximum(kernels[0], _kernel(spacing * step, patch))))
    divisor = np.prod(np.array(strides), axis=0)
    return as_triple(np.ceil(patch / divisor) * divisor), tuple(strides), tuple(kernels)


def _fit_patch(sides: NDArray[Any], spacing: NDArray[Any], voxels: int) -> NDArray[Any]:
    """The largest box of equal millimetres that holds at most ``voxels``, within the scan."""
    free = sides > 1
    patch = np.where(free, 0.0, 1.0)
    for _ in range(3):
        if not free.any():
            break
        fixed = patch[~free].prod() if (~free).any() else 1.0
        side_mm = (voxels / fixed * spacing[free].prod()) ** (1 / free.sum())
        patch[free] = side_mm / spacing[free]
        over = free & (patch >= sides)
        if not over.any():
            break
        patch[over] = sides[over]
        free = free & ~over
    return np.maximum(1, np.floor(patch + 1e-6))


def _halved_once(patch: NDArray[Any], spacing: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """A short patch made even along its fine axes, and the step that halves it."""
    wide = patch > 1
    step = np.where(wide & (spacing < 2 * spacing[wide].min()), 2, 1)
    even = np.ceil(patch / step) * step
    if (even == step).all():
        # At one voxel a norm would have nothing to norm.
        even[np.argmax(np.where(step == 2, patch, 0))] *= 2
    return even, step


def _kernel(spacing: NDArray[Any], patch: NDArray[Any]) -> Triple:
    """3 along fine axes; 1 along an axis whose voxels are still twice as long, or alone."""
    fine = spacing[patch > 1].min() if (patch > 1).any() else spacing.min()
    return as_triple(np.where((spacing < 2 * fine) & (patch > 1), 3, 1))


def as_triple(values: NDArray[Any]) -> Triple:
    """Three whole numbers."""
    a, b, c = (int(value) for value in values)
    return a, b, c
