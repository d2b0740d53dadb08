"""Feret diameters: the largest and the least width that a caliper measures on a body."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from medseg.core.geometry import Geometry

Points = NDArray[np.float64]
# Pairs of more edges than these take long, and so many faces leave little between them.
_MOST_EDGES = 600
_BLOCK = 1 << 16


def flat_axis(geometry: Geometry) -> int | None:
    """The axis that has one voxel alone; the last of several; None for a volume."""
    alone = [axis for axis, side in enumerate(geometry.shape) if side == 1]
    return alone[-1] if alone else None


def feret_mm(region: NDArray[np.bool_], geometry: Geometry) -> tuple[float, float]:
    """The largest and the least width of a region, between the outer corners of its voxels.

    The least width of a volume lies across a face of its convex hull or between two of its
    edges; of bodies with more than 600 edges the faces alone are looked at.

    Args:
        region: (I, J, K), at least one voxel inside.
        geometry: Its grid. Along an axis with one voxel a flat image has no width.
    """
    axes = [axis for axis in range(3) if axis != flat_axis(geometry)]
    steps = geometry.affine_ras[:3, axes]
    # In a frame of the plane a flat region has two coordinates.
    frame = np.linalg.qr(steps)[0]
    points = _corners(region)[:, axes] @ (frame.T @ steps).T
    hull = ConvexHull(points)
    outer = points[hull.vertices]
    least = float(np.ptp(outer @ _distinct(hull.equations[:, :-1]).T, axis=0).min())
    if len(axes) == 3:
        least = _between_edges(hull, points, outer, least)
    return float(pdist(outer).max()), least


def _corners(region: NDArray[np.bool_]) -> Points:
    """(N, 3) corners of the voxels, in voxels, that can lie on the convex hull."""
    lines = region.any(axis=0)
    j, k = np.nonzero(lines)
    first = region.argmax(axis=0)[lines]
    last = region.shape[0] - 1 - region[::-1].argmax(axis=0)[lines]
    ends = [
        np.stack([i + side, j + across, k + down], axis=1)
        for i, side in ((first, -0.5), (last, 0.5))
        for across, down in product((-0.5, 0.5), repeat=2)
    ]
    return np.unique(np.concatenate(ends), axis=0)


def _distinct(directions: Points) -> Points:
    """Directions once each, whichever way they point."""
    axis = np.abs(directions).argmax(axis=1)
    sign = np.sign(directions[np.arange(len(directions)), axis])
    return np.unique(np.round(directions * sign[:, None], 9), axis=0)


def _between_edges(hull: ConvexHull, points: Points, outer: Points, least: float) -> float:
    """The least width across a face, or less where two edges are nearer."""
    starts, ends = _edges(hull)
    if len(starts) > _MOST_EDGES:
        return least
    along = points[ends] - points[starts]
    for first, second in _pairs(len(starts)):
        across = np.cross(along[first], along[second])
        length = np.linalg.norm(across, axis=1)
        crossed = length > 1e-9 * length.max(initial=1e-300)
        normal = across[crossed] / length[crossed, None]
        apart = points[starts[first[crossed]]] - points[starts[second[crossed]]]
        # The width in a direction is never less than between two points.
        normal = normal[np.abs(np.einsum("ij,ij->i", normal, apart)) < least]
        for block in np.array_split(normal, len(normal) * len(outer) // _BLOCK // 64 + 1):
            if len(block):
                least = min(least, float(np.ptp(outer @ block.T, axis=0).min()))
    return least


def _edges(hull: ConvexHull) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Start and end of each edge at which the faces make an angle."""
    found = []
    normals = hull.equations[:, :-1]
    for corner in range(3):
        # The neighbour lies opposite to a corner, across the edge of the other two.
        other = hull.neighbors[:, corner]
        bent = np.einsum("ij,ij->i", normals, normals[other]) < 1 - 1e-9
        bent &= np.arange(len(other)) < other
        found.append(np.delete(hull.simplices, corner, axis=1)[bent])
    edges = np.concatenate(found)
    return edges[:, 0], edges[:, 1]


def _pairs(count: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    first, second = np.triu_indices(count, 1)
    for start in range(0, first.size, _BLOCK):
        yield first[start : start + _BLOCK], second[start : start + _BLOCK]
