"""Change the number of voxels in a box of space, axis by axis, with half-pixel centres.

The outer edges of both grids coincide (``Geometry.with_shape``), and values beyond the
outermost centres are those of the edge: the convention of
``torch.nn.functional.interpolate(align_corners=False)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

Triple = tuple[int, int, int]
_SLAB_VOXELS = 2_000_000


def resample_image(voxels: Tensor, shape: Triple) -> Tensor:
    """Linear interpolation of (C, I, J, K) float to (C, *shape)."""
    if tuple(voxels.shape[1:]) == shape:
        return voxels
    return interpolate(voxels[None], size=shape, mode="trilinear", align_corners=False)[0]


def resample_labels(labels: NDArray[Any], shape: Triple) -> NDArray[Any]:
    """Resample class indices (I, J, K) to ``shape`` by a weighted vote of the eight neighbours.

    The result is the argmax of linearly interpolated one-hot masks, but neither time nor
    memory grow with the number of classes: the neighbours' weights are summed per label
    without a one-hot. A tie goes to the neighbour nearest the origin.
    """
    if labels.shape == shape:
        return labels
    axes = [_neighbours(old, new) for old, new in zip(labels.shape, shape, strict=True)]
    result = np.empty(shape, dtype=labels.dtype)
    rows = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], rows):
        part = slice(start, start + rows)
        result[part] = _vote(labels, [[half[part] for half in axes[0]], axes[1], axes[2]])
    return result


def _neighbours(old: int, new: int) -> list[NDArray[Any]]:
    """For each new centre: the old index below, the one above, and the weight of the latter."""
    position = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    below = np.floor(position).astype(np.intp)
    above = np.minimum(below + 1, old - 1)
    return [below, above, (position - below).astype(np.float32)]


def _vote(labels: NDArray[Any], axes: list[list[NDArray[Any]]]) -> NDArray[Any]:
    corners, weights = [], []
    for picks in product((0, 1), repeat=3):
        index = np.ix_(*(axis[pick] for axis, pick in zip(axes, picks, strict=True)))
        a, b, c = (axis[2] if pick else 1 - axis[2] for axis, pick in zip(axes, picks, strict=True))
        corners.append(np.asarray(labels[index]))
        weights.append(a[:, None, None] * b[:, None] * c)
    if all(np.array_equal(corners[0], corner) for corner in corners[1:]):
        return np.asarray(corners[0])
    best, winner = np.full(corners[0].shape, -1.0, dtype=np.float32), corners[0].copy()
    for candidate in corners:
        score = np.zeros_like(best)
        for corner, weight in zip(corners, weights, strict=True):
            score += np.where(corner == candidate, weight, np.float32(0))
        # A hair above, so that rounding does not break the tie rule.
        wins = score > best + 1e-6
        winner[wins] = candidate[wins]
        best[wins] = score[wins]
    return np.asarray(winner)


def sample_rows(
    volume: Tensor,
    matrix: NDArray[Any],
    shape: Triple,
    *,
    rows: slice,
    nearest: bool = False,
    fill: float | None = 0.0,
    last: Sequence[float] | None = None,
) -> Tensor:
    """Rows of a volume sampled on any other grid.

    Args:
        volume: (C, I, J, K) float.
        matrix: (4, 4) from voxel indices of the new grid to those of ``volume``.
        shape: The whole new grid.
        rows: Which planes of its first axis; start and stop are given.
        nearest: Take the nearest voxel instead of interpolating linearly.
        fill: Value outside ``volume``; None repeats its edge.
        last: Indices along the last axis of the new grid, for planes at uneven places; None
            takes 0, 1, 2 ...

    Returns:
        (C, rows, shape[1], shape[2]).
    """
    device, sizes = volume.device, np.array(volume.shape[1:], dtype=np.float64)
    # torch counts from -1 to 1 between the outer edges of the volume, last axis first.
    scaled = np.diag(2 / sizes) @ matrix[:3, :3]
    shift = 2 * (matrix[:3, 3] + 0.5) / sizes - 1
    i = torch.arange(rows.start, rows.stop, device=device, dtype=torch.float32)
    j, k = (torch.arange(side, device=device, dtype=torch.float32) for side in shape[1:])
    k = k if last is None else torch.tensor(last, device=device, dtype=torch.float32)
    lines = [
        (float(scaled[axis, 0]) * i)[:, None, None]
        + (float(scaled[axis, 1]) * j)[:, None]
        + (float(scaled[axis, 2]) * k + float(shift[axis]))
        for axis in (2, 1, 0)
    ]
    grid = torch.stack(lines, dim=-1)[None]
    shifted = volume if fill is None else volume - fill
    sampled = grid_sample(
        shifted[None],
        grid,
        mode="nearest" if nearest else "bilinear",
        padding_mode="border" if fill is None else "zeros",
        align_corners=False,
    )[0]
    return sampled if fill is None else sampled + fill


def interpolate_rows(volume: Tensor, rows: slice, shape: Triple) -> Tensor:
    """Rows ``rows`` of what ``resample_image(volume, shape)`` would give, and only those.

    Args:
        volume: (C, I, J, K).
        rows: Which planes of the new first axis; start and stop are given.
        shape: The whole new shape.

    Returns:
        (C, rows, shape[1], shape[2]).
    """
    if volume.shape[1] == shape[0]:
        part = volume[:, rows]
    else:
        below, above, weight = (half[rows] for half in _neighbours(volume.shape[1], shape[0]))
        device = volume.device
        upper = torch.from_numpy(weight).to(device, volume.dtype)[:, None, None]
        part = torch.lerp(
            volume[:, torch.from_numpy(below).to(device)],
            volume[:, torch.from_numpy(above).to(device)],
            upper,
        )
    if tuple(part.shape[2:]) == shape[1:]:
        return part
    return interpolate(part, size=shape[1:], mode="bilinear", align_corners=False)
