"""Change the number of voxels in a box of space, axis by axis, with half-pixel centres.

The outer edges of both grids coincide (``Geometry.with_shape``), and values beyond the
outermost centres are those of the edge: the convention of
``torch.nn.functional.interpolate(align_corners=False)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from medseg.core.geometry import Geometry
from medseg.core.plan import AxisResampling, Spacing

Triple = tuple[int, int, int]
_SLAB_VOXELS = 2_000_000
# Beyond this many voxels an edge no longer shows in a cubic B-spline's coefficients.
_SPLINE_PAD = 12


@dataclass(frozen=True)
class AxisRules:
    """How each axis is interpolated.

    Attributes:
        orders: 0 nearest, 1 linear, 3 cubic B-spline; one per axis.
        separate: The axis that is resampled after the others, plane by plane; or None.
    """

    orders: Triple = (1, 1, 1)
    separate: int | None = None


def axis_rules(
    rule: AxisResampling, old_mm: Sequence[float], new_mm: Sequence[float], anisotropy: float
) -> AxisRules:
    """Decide for one case which axis is coarse, and how each axis is interpolated.

    Args:
        rule: The plan's.
        old_mm: Spacing of the grid that is sampled.
        new_mm: Spacing of the grid that is wanted.
        anisotropy: Coarsest over finest spacing above which a grid counts as anisotropic.
    """
    axis = None
    if rule.separate == "always":
        axis = _coarse_axis(old_mm)
    elif rule.separate == "auto":
        grids = [grid for grid in (old_mm, new_mm) if max(grid) / min(grid) > anisotropy]
        axis = _coarse_axis(grids[0]) if grids else None
    orders = [rule.coarse_order if place == axis else rule.order for place in range(3)]
    return AxisRules((orders[0], orders[1], orders[2]), axis)


def _coarse_axis(spacing_mm: Sequence[float]) -> int | None:
    # With two coarsest axes alike neither is "between the slices".
    top = [axis for axis in range(3) if spacing_mm[axis] == max(spacing_mm)]
    return top[0] if len(top) == 1 else None


def shape_for(geometry: Geometry, spacing_mm: Spacing, *, rounding: str) -> Triple:
    """Number of voxels when a grid's box is cut at a spacing; None keeps an axis.

    Args:
        geometry: The grid.
        spacing_mm: Along its axes.
        rounding: ``"half_up"`` (:meth:`Geometry.shape_at`) or ``"half_even"``, with which
            n + 1/2 goes to the even neighbour.
    """
    if rounding == "half_up":
        return geometry.shape_at(spacing_mm)
    sizes = []
    for size, old, new in zip(geometry.shape, geometry.spacing_mm, spacing_mm, strict=True):
        # Headers hold float32: the last bits of a turned affine are not of the scan.
        single = float(np.float32(old))
        own = single if abs(single - old) < 1e-9 * old else old
        sizes.append(size if new is None else max(1, round(round(own / new * size, 9))))
    return sizes[0], sizes[1], sizes[2]


def resample_image(voxels: Tensor, shape: Triple, *, rules: AxisRules = AxisRules()) -> Tensor:
    """Interpolate (C, I, J, K) float to (C, *shape).

    Cubic values are clipped to the range of what they came from: the channel, or the plane
    where an axis is separate.
    """
    if tuple(voxels.shape[1:]) == shape:
        return voxels
    if rules.orders == (1, 1, 1):
        return interpolate(voxels[None], size=shape, mode="trilinear", align_corners=False)[0]
    return torch.stack([_resample_channel(channel, shape, rules) for channel in voxels])


def _resample_channel(channel: Tensor, shape: Triple, rules: AxisRules) -> Tensor:
    axes = [axis for axis in range(3) if channel.shape[axis] != shape[axis]]
    within = [axis for axis in axes if axis != rules.separate]
    done = channel
    # What shrinks most goes first: the other axes then have less to do.
    for axis in sorted(within, key=lambda axis: shape[axis] / channel.shape[axis]):
        done = along(done, axis, shape[axis], rules.orders[axis])
    if any(rules.orders[axis] == 3 for axis in within):
        rest = [axis for axis in range(3) if axis != rules.separate]
        done = done.clamp_(channel.amin(rest, keepdim=True), channel.amax(rest, keepdim=True))
    if rules.separate in axes:
        done = along(done, rules.separate, shape[rules.separate], rules.orders[rules.separate])
    return done


def along(voxels: Tensor, axis: int, size: int, order: int) -> Tensor:
    """Resample one axis of (I, J, K) to ``size`` voxels."""
    if order == 0:
        return voxels.index_select(axis, torch.from_numpy(nearest_index(voxels.shape[axis], size)))
    weights = axis_weights(voxels.shape[axis], size, order)
    if axis == 0:
        return (weights @ voxels.reshape(voxels.shape[0], -1)).reshape(size, *voxels.shape[1:])
    return weights @ voxels if axis == 1 else voxels @ weights.T


def axis_weights(old: int, new: int, order: int) -> Tensor:
    """(new, old) float32: the weight of each old voxel in each new one, along one axis.

    ``order`` 1 is linear. 3 is the cubic B-spline through the samples, their edge repeated
    (Unser, IEEE Signal Processing Magazine 16, 1999): since it is linear in the samples,
    prefilter and sampling are one matrix.
    """
    if order == 1:
        below, above, weight = linear_taps(old, new)
        rows, matrix = np.arange(new), np.zeros((new, old))
        np.add.at(matrix, (rows, below), 1.0 - weight)
        np.add.at(matrix, (rows, above), weight)
        return torch.from_numpy(matrix.astype(np.float32))
    return cubic_weights((np.arange(new) + 0.5) * (old / new) - 0.5, old)


def cubic_weights(places: NDArray[Any], old: int) -> Tensor:
    """:func:`axis_weights` of order 3 for any places (new,), in voxels of the old axis."""
    # It takes a while to load, and most plans are linear.
    from scipy.ndimage import spline_filter1d

    padded = np.pad(np.eye(old), ((_SPLINE_PAD, _SPLINE_PAD), (0, 0)), mode="edge")
    coefficients = spline_filter1d(padded, order=3, axis=0, mode="mirror")
    position = places + _SPLINE_PAD
    first = np.floor(position).astype(np.intp)
    t = (position - first)[:, None]
    taps = cubic_taps(t)
    matrix = sum(tap * coefficients[first - 1 + n] for n, tap in enumerate(taps))
    return torch.from_numpy(np.asarray(matrix, dtype=np.float32))


def cubic_taps(t: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Weights of the four coefficients of a cubic B-spline about a place.

    Args:
        t: Share of the way from the second coefficient to the third, 0 to 1.
    """
    return (
        (1 - t) ** 3 / 6,
        (4 - 6 * t**2 + 3 * t**3) / 6,
        (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6,
        t**3 / 6,
    )


def nearest_index(old: int, new: int) -> NDArray[np.intp]:
    """For each new voxel of an axis, the old one in which its centre lies."""
    position = np.floor((np.arange(new) + 0.5) * (old / new)).astype(np.intp)
    return np.asarray(np.minimum(position, old - 1))


def resample_labels(
    labels: NDArray[Any], shape: Triple, *, rules: AxisRules = AxisRules()
) -> NDArray[Any]:
    """Resample class indices (I, J, K) to ``shape`` by a weighted vote of the eight neighbours.

    The result is the argmax of linearly interpolated one-hot masks, but neither time nor
    memory grow with the number of classes: the neighbours' weights are summed per label
    without a one-hot. A tie goes to the nearest neighbour, halfway to the farther from the
    origin. Axes of order 0 take the nearest plane.
    """
    if labels.shape == shape:
        return labels
    axes = [
        _nearest(old, new) if order == 0 else linear_taps(old, new)
        for old, new, order in zip(labels.shape, shape, rules.orders, strict=True)
    ]
    result = np.empty(shape, dtype=labels.dtype)
    rows = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], rows):
        part = slice(start, start + rows)
        result[part] = _vote(labels, [[half[part] for half in axes[0]], axes[1], axes[2]])
    return result


def linear_taps(old: int, new: int) -> list[NDArray[Any]]:
    """For each new centre: the old index below, the one above, and the weight of the latter."""
    position = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    below = np.floor(position).astype(np.intp)
    above = np.minimum(below + 1, old - 1)
    return [below, above, (position - below).astype(np.float32)]


def _nearest(old: int, new: int) -> list[NDArray[Any]]:
    index = nearest_index(old, new)
    return [index, index, np.zeros(new, dtype=np.float32)]


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
    near = np.ix_(*(np.where(half >= 0.5, above, below) for below, above, half in axes))
    for candidate in (np.asarray(labels[near]), *corners):
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
