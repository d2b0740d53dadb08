"""Distance from each of some points to the nearest of others, exact and fast.

Three ways lead to the same figure, and the cheapest is taken. The surfaces of two masks of
one organ mostly lie a few voxels apart: there the voxels around each point are looked up in
the order of their distance until one is a source. What is left over is found in a k-d tree
of the sources. Where there are many of those, far away, or where points fill the whole box,
a distance transform is cheaper. The choice depends on the points
alone, so that a figure is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from medseg.postprocess.distances import distance_transform as distance_transform

_MOST_OFFSETS = 1000
# Costs in units of one look-up (about 3 ns), measured on boxes of 0.1 to 20 million voxels.
_COST_OF_STEP = 1500
_COST_OF_SOURCE_IN_TREE = 100
_COST_OF_NEAR_QUERY = 400
_COST_OF_WIDE_QUERY = 1500
# Where very many sources are about equally far, a query looks at a good part of them.
_COST_OF_FAR_QUERY_PER_SOURCE = 3
_WIDE = 2.0
_COST_OF_VOXEL_IN_TRANSFORM = 12


def nearest_distances(
    points: NDArray[np.bool_], sources: NDArray[np.bool_], *, spacing_mm: Sequence[float]
) -> NDArray[np.float64]:
    """Distance in mm from each point to the nearest source.

    Args:
        points: (I, J, K), or fewer axes; True at the points.
        sources: Of the same shape; at least one is True.
        spacing_mm: Voxel size along each axis.

    Returns:
        (points,) in C order.
    """
    where = np.flatnonzero(points)
    distances = np.zeros(where.size)
    left = np.flatnonzero(~sources.ravel()[where])
    others = np.flatnonzero(sources)
    if points.ndim == 0 or left.size == 0:
        return distances
    transform = points.size * _COST_OF_VOXEL_IN_TRANSFORM
    left = _look_around(
        distances, left, where=where, sources=sources, spacing_mm=spacing_mm,
        budget=min(others.size * _COST_OF_SOURCE_IN_TREE, transform),
    )  # fmt: skip
    if left.size == 0:
        return distances

    def by_transform(rest: NDArray[np.intp]) -> None:
        distances[rest] = distance_transform(sources, spacing_mm).ravel()[where[rest]]

    near = others.size * _COST_OF_SOURCE_IN_TREE + left.size * _COST_OF_WIDE_QUERY
    if near > transform and points.ndim > 1:
        by_transform(left)
        return distances
    # It takes a while to load, and near surfaces need none.
    from scipy.spatial import KDTree

    tree = KDTree(_places(others, points.shape, spacing_mm), balanced_tree=False)
    wide_mm = _WIDE * float(_offsets(tuple(map(float, spacing_mm)))[1][-1])
    places = _places(where[left], points.shape, spacing_mm)
    distances[left] = tree.query(places, distance_upper_bound=wide_mm)[0]
    rest = np.isinf(distances[left])
    far = left[rest]
    if far.size * others.size * _COST_OF_FAR_QUERY_PER_SOURCE > transform and points.ndim > 1:
        by_transform(far)
    elif far.size:
        distances[far] = tree.query(places[rest])[0]
    return distances


def _look_around(
    distances: NDArray[np.float64],
    left: NDArray[np.intp],
    *,
    where: NDArray[np.intp],
    sources: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    budget: int,
) -> NDArray[np.intp]:
    """Fill in the distances of points that lie close to a source.

    Args:
        distances: (points,), changed in place.
        left: Which points have no distance yet.
        where: (points,) flat index of each.
        sources: True at the sources.
        spacing_mm: Voxel size along each axis.
        budget: Look-ups after which it is given up, apart from those the tree would cost.

    Returns:
        The points that are still left.
    """
    steps, lengths_mm = _offsets(tuple(float(step) for step in spacing_mm))
    inside = (np.abs(steps) < np.array(sources.shape)).all(axis=1)
    steps, lengths_mm = steps[inside], lengths_mm[inside]
    reach = np.abs(steps).max(axis=0, initial=0)
    around = np.pad(sources, [(int(side), int(side)) for side in reach])
    strides = np.array([prod(around.shape[axis + 1 :]) for axis in range(sources.ndim)])
    axes = np.unravel_index(where[left], sources.shape)
    flat = sum(
        (axis + side) * stride for axis, side, stride in zip(axes, reach, strides, strict=True)
    )
    flat, seen = np.asarray(flat), around.ravel()
    for jump, length_mm in zip(steps @ strides, lengths_mm, strict=True):
        hit = seen[flat + jump]
        distances[left[hit]] = length_mm
        rest = ~hit
        left, flat = left[rest], flat[rest]
        budget -= left.size + _COST_OF_STEP
        if left.size == 0 or budget < -left.size * _COST_OF_NEAR_QUERY:
            break
    return left


@lru_cache(maxsize=64)
def _offsets(spacing_mm: tuple[float, ...]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Steps (N, axes) to the voxels of a ball, the nearest first, and their lengths in mm."""
    dims, volume = len(spacing_mm), _MOST_OFFSETS * prod(spacing_mm)
    radius_mm = {1: volume / 2, 2: (volume / np.pi) ** 0.5}.get(
        dims, (volume * 0.75 / np.pi) ** (1 / 3)
    )
    sides = [np.arange(-int(radius_mm / step), int(radius_mm / step) + 1) for step in spacing_mm]
    steps = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, dims)
    lengths_mm = np.linalg.norm(steps * np.array(spacing_mm), axis=1)
    order = np.argsort(lengths_mm, kind="stable")
    # The first is the point itself.
    order = order[: np.searchsorted(lengths_mm[order], radius_mm, side="right")][1:]
    return steps[order], lengths_mm[order]


def _places(
    indices: NDArray[np.intp], shape: tuple[int, ...], spacing_mm: Sequence[float]
) -> NDArray[np.float64]:
    axes = np.unravel_index(indices, shape)
    return np.stack([axis * float(step) for axis, step in zip(axes, spacing_mm, strict=True)], -1)
