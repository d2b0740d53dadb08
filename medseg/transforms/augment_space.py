"""Rotation, scaling, mirroring, elastic displacement and cropping in one single resampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from medseg.transforms.augment import Elastic, Triple, Variation
from medseg.transforms.resample import cubic_taps

# A patch this close to voxel centres is copied: what torch would interpolate is the same.
_ON_VOXELS = 1e-6


def needed_box(
    centre: NDArray[np.float64], variation: Variation, patch: Triple
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last+1 voxel that a patch around ``centre`` touches; may leave the volume."""
    half = (np.asarray(patch) - 1) / 2
    if variation.elastic is not None:
        half = half + np.asarray(variation.elastic.reach)
    reach = np.abs(variation.matrix) @ half
    low = np.floor(centre - reach + 1e-6).astype(np.int64)
    high = np.ceil(centre + reach - 1e-6).astype(np.int64) + 1
    return low, np.maximum(high, low + 1)


def sample_patch(
    boxes: Sequence[Tensor],
    origin: NDArray[np.float64],
    variation: Variation,
    *,
    patch: Triple,
    nearest: Sequence[bool],
) -> list[Tensor]:
    """Resample one patch out of a box of voxels, for image and label with the same grid.

    Args:
        boxes: (C, I, J, K) each, of one size: the part of the volume that the patch touches.
            Those that are interpolated are float.
        origin: (3,) centre of the patch in voxels of the box.
        variation: Its matrix and displacement.
        patch: Shape of the result.
        nearest: For each box, whether the nearest voxel is taken (labels) instead of
            interpolating linearly.

    Returns:
        (C, *patch) of the dtype of each box; 0 outside the box.
    """
    start = origin - np.abs(variation.matrix) @ ((np.asarray(patch) - 1) / 2)
    if variation.on_grid and np.abs(start - np.round(start)).max() < _ON_VOXELS:
        return [_cropped(box, np.round(start).astype(int), variation, patch) for box in boxes]
    grid = _sampling_grid(boxes[0], origin, variation, patch)
    return [
        _nearest(box, grid) if rough else _interpolated(box, grid)
        for box, rough in zip(boxes, nearest, strict=True)
    ]


def swapped(labels: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Labels with the classes of each pair exchanged, for a patch mirrored left to right.

    Args:
        labels: Class indices of any shape and integer dtype.
        pairs: Two classes each.
    """
    if not pairs:
        return labels
    table = torch.arange(1 << (8 if labels.dtype == torch.uint8 else 16))
    for left, right in pairs:
        table[left], table[right] = right, left
    return table.to(labels.device)[labels.long()].to(labels.dtype)


def _cropped(box: Tensor, start: NDArray[Any], variation: Variation, patch: Triple) -> Tensor:
    result = box.new_zeros((box.shape[0], *patch))
    low = np.maximum(start, 0)
    high = np.minimum(start + np.asarray(patch), box.shape[1:])
    if (high > low).all():
        source = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        place = tuple(slice(int(a), int(b)) for a, b in zip(low - start, high - start, strict=True))
        result[:, *place] = box[:, *source]
    flipped = [axis + 1 for axis in range(3) if variation.matrix[axis, axis] < 0]
    return result.flip(flipped) if flipped else result


def _sampling_grid(
    box: Tensor, origin: NDArray[np.float64], variation: Variation, patch: Triple
) -> Tensor:
    """(3, *patch): for each patch voxel its place in the box, K first, as torch counts them."""
    sizes = np.array(box.shape[1:], dtype=np.float64)
    half = (np.asarray(patch, dtype=np.float64) - 1) / 2
    # Patch coordinates run from -1 to 1 between voxel centres (0 along a side of 1); torch
    # wants those of the box from -1 to 1 between its outer edges, last axis first.
    to_torch = np.diag(2 / sizes) @ variation.matrix
    steps = to_torch @ np.diag(half)
    shift = 2 * (origin + 0.5) / sizes - 1
    i, j, k = (
        torch.linspace(-1, 1, side, device=box.device) if side > 1 else box.new_zeros(1).float()
        for side in patch
    )
    grid = torch.empty((3, *patch), device=box.device)
    for place, axis in enumerate((2, 1, 0)):
        plane = (float(steps[axis, 1]) * j)[:, None] + (
            float(steps[axis, 2]) * k + float(shift[axis])
        )
        torch.add((float(steps[axis, 0]) * i)[:, None, None], plane, out=grid[place])
    if variation.elastic is not None:
        grid += _displacement(variation.elastic, to_torch[::-1], patch, box.device)
    return grid


def _displacement(
    elastic: Elastic, scale: NDArray[Any], patch: Triple, device: torch.device
) -> Tensor:
    """(3, *patch) of smooth random displacements, multiplied by the matrix ``scale``."""
    weights = [spline_weights(side, step) for side, step in zip(patch, elastic.step, strict=True)]
    rng = np.random.default_rng(elastic.seed)
    counts = [weight.shape[1] for weight in weights]
    control = rng.uniform(-1, 1, (3, *counts)) * np.asarray(elastic.reach)[:, None, None, None]
    points = torch.from_numpy(np.einsum("ab,b...->a...", scale, control).astype(np.float32))
    a, b, c = (torch.from_numpy(weight).to(device) for weight in weights)
    points = points.to(device) @ c.T
    points = b @ points
    return (a @ points.flatten(2)).reshape(3, *patch)


def spline_weights(side: int, step: float) -> NDArray[np.float32]:
    """(side, points) weight of each control point in each voxel of one axis.

    Points lie ``step`` voxels apart, one in the middle of the axis, and reach so far beyond
    its ends that each voxel has four of them (cubic B-spline).
    """
    ahead = int(np.ceil((side - 1) / 2 / step))
    place = (np.arange(side) - (side - 1) / 2) / step + ahead + 1
    first = np.floor(place).astype(int)
    matrix = np.zeros((side, 2 * ahead + 4))
    rows = np.arange(side)
    for number, tap in enumerate(cubic_taps(place - first)):
        matrix[rows, first - 1 + number] = tap
    return matrix.astype(np.float32)


def _interpolated(box: Tensor, grid: Tensor) -> Tensor:
    # On a CPU torch shares the work between samples alone: slabs of the patch count as such.
    slabs = _slabs(grid)
    places = grid.permute(1, 2, 3, 0).unflatten(0, (slabs, -1))
    parts = grid_sample(
        box[None].expand(slabs, -1, -1, -1, -1), places,
        mode="bilinear", padding_mode="zeros", align_corners=False,
    )  # fmt: skip
    if slabs == 1:
        return parts[0]
    return parts.transpose(0, 1).flatten(1, 2)


def _slabs(grid: Tensor) -> int:
    threads = torch.get_num_threads() if grid.device.type == "cpu" else 1
    return next((n for n in range(threads, 1, -1) if grid.shape[1] % n == 0), 1)


def _nearest(box: Tensor, grid: Tensor) -> Tensor:
    sizes = box.shape[1:]
    inside, index = None, None
    for place, axis in ((2, 0), (1, 1), (0, 2)):
        # The voxel whose box holds the place: from -1 to 1 there are as many as the side has.
        at = ((grid[place] + 1) * (sizes[axis] / 2)).floor_().to(torch.int32)
        fits = (at >= 0) & (at < sizes[axis])
        at.clamp_(0, sizes[axis] - 1)
        inside = fits if inside is None else inside.logical_and_(fits)
        index = at if index is None else index.mul_(sizes[axis]).add_(at)
    assert inside is not None
    assert index is not None
    flat = box.flatten(1)
    taken = flat.index_select(1, index.flatten()).reshape(box.shape[0], *grid.shape[1:])
    return taken.mul_(inside)
