"""Which parts of a label stay, by where they lie: near a point, near or at another organ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from medseg.core.geometry import Geometry
from medseg.postprocess.components import Box, Parts, Structure, find_parts, without_parts

_RANK = {4: 1, 6: 1, 8: 2, 18: 2, 26: 3}


def keep_nearest(
    mask: NDArray[Any],
    structure: Structure,
    *,
    geometry: Geometry,
    point_mm: Sequence[float] | None = None,
    other: int | None = None,
    connectivity: int = 26,
) -> NDArray[Any]:
    """Keep only that region of a label which lies nearest to a point or to another organ.

    Distances are between voxel centres, in mm, from surface to surface; of equally near
    regions the larger stays. Without the other organ nothing is removed.

    Args:
        mask: (I, J, K) integers, 0 is background. Not changed.
        structure: The label to clean; a tuple counts as one.
        geometry: Where the voxels lie.
        point_mm: (x, y, z), RAS+.
        other: Label of the other organ, where no point is given.
        connectivity: See ``components.label_components``.
    """
    parts = find_parts(mask, [structure], connectivity)
    own = parts.of(0)
    goal = np.asarray([point_mm]) if other is None else _surface_of_label(mask, other, geometry)
    if own.size < 2 or len(goal) == 0:
        return mask.copy(order="K")
    tree = cKDTree(goal)
    away_mm = [
        float(np.min(tree.query(_surface_of_part(parts, part, geometry))[0])) for part in own
    ]
    # Rounded, so that a tie is one whatever the last bits are.
    order = sorted(
        range(len(own)), key=lambda n: (round(away_mm[n], 6), -int(parts.sizes[own[n]]), n)
    )
    drop = np.zeros(parts.sizes.size, dtype=np.bool_)
    drop[own] = True
    drop[own[order[0]]] = False
    return without_parts(mask, parts, drop)


def keep_inside(
    mask: NDArray[Any], structure: Structure, *, other: int, connectivity: int = 26
) -> NDArray[Any]:
    """Keep only those regions of a label that touch another one: tumours of the liver.

    Labels exclude each other, so that what lies within an organ borders on it. Without the
    organ every region goes.

    Args:
        mask: (I, J, K) integers, 0 is background. Not changed.
        structure: The label to clean; a tuple counts as one.
        other: Label of the organ.
        connectivity: Which neighbours touch, see ``components.label_components``.
    """
    parts = find_parts(mask, [structure], connectivity)
    own = parts.of(0)
    drop = np.zeros(parts.sizes.size, dtype=np.bool_)
    drop[own] = True
    box = box_of(mask == other, margin=1)
    if box is not None:
        touching = ndimage.binary_dilation(
            mask[box] == other, ndimage.generate_binary_structure(3, _RANK[connectivity])
        )
        drop[np.unique(parts.components[box][touching])] = False
    return without_parts(mask, parts, drop)


def box_of(inside: NDArray[np.bool_], *, margin: int | Sequence[int] = 0) -> Box | None:
    """The smallest box around what is true, and a margin in voxels; None where nothing is.

    Args:
        inside: (I, J, K).
        margin: For all axes, or for each; the box ends at the border of the array.
    """
    margins = [margin] * 3 if isinstance(margin, int) else list(margin)
    sides: list[slice] = []
    lines = (inside.any(axis=(1, 2)), inside.any(axis=(0, 2)), inside.any(axis=(0, 1)))
    for line, extra in zip(lines, margins, strict=True):
        lit = np.flatnonzero(line)
        if lit.size == 0:
            return None
        sides.append(slice(max(0, int(lit[0]) - extra), int(lit[-1]) + 1 + extra))
    return sides[0], sides[1], sides[2]


def _surface_of_part(parts: Parts, part: int, geometry: Geometry) -> NDArray[np.float64]:
    box = parts.box(part)
    return _surface_mm(parts.components[box] == part, box, geometry)


def _surface_of_label(mask: NDArray[Any], value: int, geometry: Geometry) -> NDArray[np.float64]:
    inside = mask == value
    box = box_of(inside)
    return np.zeros((0, 3)) if box is None else _surface_mm(inside[box], box, geometry)


def _surface_mm(inside: NDArray[np.bool_], box: Box, geometry: Geometry) -> NDArray[np.float64]:
    """(N, 3) places, RAS+, of the voxels at the surface of a body."""
    surface = inside & ~ndimage.binary_erosion(inside)
    voxels = np.argwhere(surface) + [side.start for side in box]
    affine = geometry.affine_ras
    return np.asarray(voxels @ affine[:3, :3].T + affine[:3, 3])
