"""Area of the surface that passes between eight voxels, computed from geometry.

A cell lies between the centres of 2 x 2 x 2 voxels. Where some of them are inside a mask
and some outside, marching cubes (W. Lorensen, H. Cline, 1987) puts a piece of surface
through the middles of the edges between them. Its area weighs that place of the surface,
as S. Nikolov et al. propose ("Deep learning to achieve clinically applicable segmentation
of head and neck anatomy for radiotherapy", 2018). In a flat image the cell is a square of
2 x 2 pixels, and the piece is a line.

Two choices are open in marching cubes, and made as the published reference does: on a face
with two corners inside, across from each other, the side with fewer corners in the whole
cell is kept apart; a piece with five or six corners is cut into triangles so that its area
in a unit cube is the largest.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, ...]
Triangle = tuple[int, int, int]
_MOST_TRIANGLES = 4
_CORNERS = tuple(product((0, 1), repeat=3))
# Once around each of the six faces.
_FACES = tuple(
    tuple((*corner[:axis], side, *corner[axis:]) for corner in ((0, 0), (0, 1), (1, 1), (1, 0)))
    for axis in range(3)
    for side in (0, 1)
)


@lru_cache(maxsize=64)
def element_sizes(spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Size of the surface in a cell, by which of the cell's corners are inside the mask.

    Args:
        spacing_mm: Voxel size along each axis that the image extends along; 0 to 3 of them.

    Returns:
        (2 ** (2 ** axes),) mm2 in a volume, mm in a flat image, 1 per end of a line. Bit
        ``a + 2 b + 4 c`` of the position tells whether corner (a, b, c) is inside.
    """
    dims = len(spacing_mm)
    if dims == 3:
        # Stretching the cell stretches a normal by the area of the side that it stands on.
        a, b, c = spacing_mm
        normals = _normals() * np.array([b * c, a * c, a * b])
        sizes = np.asarray(np.linalg.norm(normals, axis=-1).sum(axis=-1))
    elif dims == 2:
        sizes = np.array([_length(code, spacing_mm) for code in range(16)])
    else:
        # An end of a line, or the one voxel of an image without extent.
        sizes = np.array([0.0, 1.0, 1.0, 0.0]) if dims == 1 else np.array([0.0, 1.0])
    sizes.setflags(write=False)
    return sizes


@lru_cache(maxsize=1)
def _normals() -> NDArray[np.float64]:
    """(256, triangles, 3) of a unit cube: as long as the triangle is large; 0 where none is."""
    found = np.zeros((256, _MOST_TRIANGLES, 3))
    for code in range(256):
        pieces = [
            _normal([loop[corner] for corner in triangle])
            for loop in _loops(_lines(code))
            for triangle in _widest(loop)
        ]
        found[code, : len(pieces)] = np.reshape(pieces, (-1, 3))
    return found


def _length(code: int, spacing_mm: tuple[float, ...]) -> float:
    """Marching squares: lines between the middles of the pixels' joins."""
    a, b = spacing_mm
    inside = [bool(code >> bit & 1) for bit in range(4)]
    ends = [inside[0] != inside[1], inside[2] != inside[3]], [
        inside[0] != inside[2], inside[1] != inside[3],
    ]  # fmt: skip
    if all(ends[0]) and all(ends[1]):
        return float(np.hypot(a, b))
    if all(ends[0]):
        return b
    if all(ends[1]):
        return a
    return float(np.hypot(a, b)) / 2 if any(ends[0]) else 0.0


def _lines(code: int) -> list[tuple[Point, Point]]:
    """Where the surface cuts the faces of the cell."""
    inside = {c: bool(code >> (c[0] + 2 * c[1] + 4 * c[2]) & 1) for c in _CORNERS}
    fewer = sum(inside.values()) <= 4
    lines = []
    for face in _FACES:
        middles = [
            tuple((p + q) / 2 for p, q in zip(face[n], face[(n + 1) % 4], strict=True))
            for n in range(4)
        ]
        cut = [n for n in range(4) if inside[face[n]] != inside[face[(n + 1) % 4]]]
        if len(cut) == 2:
            lines.append((middles[cut[0]], middles[cut[1]]))
        elif cut:
            lines += [(middles[n - 1], middles[n]) for n in range(4) if inside[face[n]] == fewer]
    return lines


def _loops(lines: list[tuple[Point, Point]]) -> list[list[Point]]:
    """Lines joined end to end: the outlines of the pieces."""
    beside: dict[Point, list[Point]] = {}
    for one, other in lines:
        beside.setdefault(one, []).append(other)
        beside.setdefault(other, []).append(one)
    loops = []
    while beside:
        point: Point | None = next(iter(beside))
        loop: list[Point] = []
        while point is not None:
            loop.append(point)
            point = next((other for other in beside.pop(point) if other in beside), None)
        loops.append(loop)
    return loops


def _widest(loop: list[Point]) -> list[Triangle]:
    """Of all ways to cut an outline into triangles the one of the largest area."""

    def area(triangles: list[Triangle]) -> float:
        # Rounded, so that a tie does not depend on the last bits.
        places = [[loop[corner] for corner in triangle] for triangle in triangles]
        return round(float(sum(np.linalg.norm(_normal(place)) for place in places)), 9)

    return max(_triangulations(0, len(loop) - 1), key=area)


def _triangulations(first: int, last: int) -> list[list[Triangle]]:
    """All ways to cut the polygon of corners ``first`` to ``last`` into triangles."""
    if last - first < 2:
        return [[]]
    return [
        [*before, (first, tip, last), *after]
        for tip in range(first + 1, last)
        for before in _triangulations(first, tip)
        for after in _triangulations(tip, last)
    ]


def _normal(corners: list[Point]) -> NDArray[np.float64]:
    a, b, c = np.array(corners)
    return np.asarray(np.cross(b - a, c - a) / 2)
