"""Rotation, scaling, mirroring, elastic displacement and cropping in one single resampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from medseg.transforms.augment import Elastic, Triple, Variation
from medseg.transforms.resample import cubic_taps

# A patch this close to voxel centres is copied: what torch would interpolate is the same.
_ON_VOXELS = 1e-6
# What a patch may leave the box by before zeros are laid about it, in voxels.
_AT_EDGE = 1e-5
# Half a voxel in 2^24 is what a float keeps; so many rows leave a hundredth of a voxel.
_MOST_ROWS = 1 << 16


def needed_box(
    centre: NDArray[np.float64], variation: Variation, patch: Triple
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last+1 voxel that a patch around ``centre`` touches; may leave the volume."""
    reach = np.abs(variation.matrix) @ _half(variation, patch)
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
            interpolating linearly. On a CPU a voxel is interpolated at a place that is exact
            to about a thousandth of a voxel, never worse than a hundredth.

    Returns:
        (C, *patch) of the dtype of each box; 0 outside the box.
    """
    start = origin - np.abs(variation.matrix) @ ((np.asarray(patch) - 1) / 2)
    if variation.on_grid and np.abs(start - np.round(start)).max() < _ON_VOXELS:
        return [_cropped(box, np.round(start).astype(int), variation, patch) for box in boxes]
    rim = _rim(boxes[0], origin, variation, patch)
    places = _places(boxes[0], rim, origin, variation, patch)
    sides = [side for wide in rim[::-1] for side in (wide, wide)]
    whole = [pad(box, sides) if any(rim) else box for box in boxes]
    return [
        _nearest(box, places) if rough else _interpolated(box, places)
        for box, rough in zip(whole, nearest, strict=True)
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


def _rim(
    box: Tensor, origin: NDArray[np.float64], variation: Variation, patch: Triple
) -> tuple[int, ...]:
    """Voxels of zeros to lay about the box: 1 along each axis along which the patch leaves it.

    A place beyond them is moved to them, so that no place needs to be looked at again.
    """
    reach = np.abs(variation.matrix) @ _half(variation, patch)
    last = np.array(box.shape[1:]) - 1
    leaves = (origin - reach < -_AT_EDGE) | (origin + reach > last + _AT_EDGE)
    return tuple(int(beyond) for beyond in leaves)


def _half(variation: Variation, patch: Triple) -> NDArray[np.float64]:
    """(3,) voxels from the centre of the patch to its outermost places."""
    half = (np.asarray(patch, dtype=np.float64) - 1) / 2
    return half if variation.elastic is None else half + np.asarray(variation.elastic.reach)


def _places(
    box: Tensor,
    rim: tuple[int, ...],
    origin: NDArray[np.float64],
    variation: Variation,
    patch: Triple,
) -> Tensor:
    """(3, *patch): for each patch voxel its place in the box with its rim, in voxels."""
    matrix, start = variation.matrix, origin + np.asarray(rim)
    i, j, k = (torch.arange(side, device=box.device) - (side - 1) / 2 for side in patch)
    places = torch.empty((3, *patch), device=box.device)
    for axis, place in enumerate(places):
        plane = (float(matrix[axis, 1]) * j)[:, None] + (
            float(matrix[axis, 2]) * k + float(start[axis])
        )
        torch.add((float(matrix[axis, 0]) * i)[:, None, None], plane, out=place)
    if variation.elastic is not None:
        places += _displacement(variation.elastic, matrix, patch, box.device)
    for place, side, wide in zip(places, box.shape[1:], rim, strict=True):
        place.clamp_(0, side + 2 * wide - 1)
    return places


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


def _interpolated(box: Tensor, places: Tensor) -> Tensor:
    if box.shape[3] == 1:
        return _in_plane(box, places)
    if box.device.type == "cpu" and min(box.shape[1:]) > 1:
        # Rows must be found by adding up: a box cut out of a volume keeps that volume's steps.
        steps = box.stride()
        if steps[3] != 1 or steps[2] == 0 or steps[1] % steps[2]:
            box = box.contiguous()
        if (box.shape[1] - 1) * (box.stride(1) // box.stride(2)) < _MOST_ROWS:
            return _by_rows(box, places)
    sizes = box.shape[1:]
    # torch wants a box from -1 to 1 between its outermost voxels, last axis first.
    grid = torch.stack([places[axis] * (2 / max(sizes[axis] - 1, 1)) - 1 for axis in (2, 1, 0)], -1)
    return grid_sample(
        box[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0]


def _in_plane(box: Tensor, places: Tensor) -> Tensor:
    """(C, *patch) of a box one voxel thin along K."""
    sizes = box.shape[1:]
    grid = torch.stack([places[axis] * (2 / max(sizes[axis] - 1, 1)) - 1 for axis in (1, 0)])
    slabs = _in_slabs(grid)
    parts = grid_sample(
        box[None, ..., 0].expand(len(slabs), -1, -1, -1), slabs,
        mode="bilinear", padding_mode="border", align_corners=True,
    )  # fmt: skip
    return parts.transpose(0, 1).reshape(box.shape[0], *places.shape[1:])


def _by_rows(box: Tensor, places: Tensor) -> Tensor:
    """Two slices at once out of the planes below and above each place, then between the two.

    In two dimensions torch is several times as quick on a CPU as in three. So rows of all
    planes count as rows of one picture, (I * J, K), and the same picture one plane further
    on is its second channel. Nothing is copied. The number of a row is large, so that few
    digits are left for the place between two rows; hence ``_MOST_ROWS``.
    """
    planes, rows, columns = box.shape[1:]
    plane, row = box.stride()[1:3]
    high = (planes - 2) * (plane // row) + rows
    below = places[0].floor().clamp_(max=planes - 2)
    above = places[0] - below
    grid = torch.empty_like(places[:2])
    torch.mul(places[2], 2 / (columns - 1), out=grid[0]).sub_(1)
    torch.add(places[1], below, alpha=plane // row, out=grid[1]).mul_(2 / (high - 1)).sub_(1)
    slabs = _in_slabs(grid)
    result = box.new_empty((box.shape[0], *places.shape[1:]))
    for number, channel in enumerate(box):
        pictures = channel.as_strided(
            (len(slabs), 2, high, columns), (0, plane, row, 1), channel.storage_offset()
        )
        pair = grid_sample(
            pictures, slabs, mode="bilinear", padding_mode="border", align_corners=True
        )
        share = above.view(slabs.shape[:-1])
        torch.lerp(pair[:, 0], pair[:, 1], share, out=result[number].view_as(share))
    return result


def _in_slabs(grid: Tensor) -> Tensor:
    """(slabs, I / slabs, J * K, 2) of (2, I, J, K): a CPU shares work between samples alone."""
    threads = torch.get_num_threads() if grid.device.type == "cpu" else 1
    slabs = next((n for n in range(threads, 1, -1) if grid.shape[1] % n == 0), 1)
    return grid.view(2, slabs, grid.shape[1] // slabs, -1).permute(1, 2, 3, 0)


def _nearest(box: Tensor, places: Tensor) -> Tensor:
    steps = box.stride()[1:]
    last = sum((side - 1) * step for side, step in zip(box.shape[1:], steps, strict=True))
    dtype = torch.int32 if last < 1 << 31 else torch.int64
    i, j, k = ((place + 0.5).to(dtype) for place in places)
    index = i.mul_(steps[0]).add_(j.mul_(steps[1])).add_(k.mul_(steps[2])).flatten()
    # The box may be cut out of a volume: what lies between its first and last voxel counts.
    flat = [one.as_strided((last + 1,), (1,), one.storage_offset()) for one in box]
    return torch.stack([one.index_select(0, index).view(places.shape[1:]) for one in flat])
