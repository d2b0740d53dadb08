"""Closed surfaces of labels, smoothed without loss of volume.

A surface net (S. Gibson, "Constrained elastic surface nets", MICCAI 1998) has one vertex in
each cell between eight voxel centres that lie on both sides of the border, and one square
for each pair of neighbouring voxels on both sides. It is relaxed by turns of shrinking and
growing (G. Taubin, "A signal processing approach to fair surface design", 1995), and no
vertex leaves its cell, so that the surface stays within a voxel of the border. Then each
connected piece is moved along its normals until it encloses just the volume of its voxels,
about their centroid.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from medseg.core.errors import InputError, SettingsError
from medseg.core.geometry import Geometry
from medseg.core.labels import Label, LabelSet
from medseg.core.optional import require
from medseg.core.results import Mesh

_LOG = logging.getLogger(__name__)

_SHRINK, _GROW = 0.5, -0.53
_NEWTON_STEPS = 12
# A piece may miss its volume by this share; the whole then keeps it to far below 1 %.
_MOST_MISSED = 1e-3
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class MeshOptions:
    """How surfaces are made.

    Attributes:
        smoothing: Turns of shrinking and growing; 0 leaves the borders of the voxels.
        reduction: Share of the triangles to be taken away, 0 to below 1; needs the package
            ``fast_simplification``.
        workers: Labels worked on at once.

    Raises:
        SettingsError: A value is out of range.
    """

    smoothing: int = 12
    reduction: float = 0.0
    workers: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing <= 1000:
            raise SettingsError("smoothing", expected="0 to 1000 turns", got=str(self.smoothing))
        if not 0.0 <= self.reduction < 1.0:
            raise SettingsError("reduction", expected="0 to below 1", got=str(self.reduction))
        if self.workers < 1:
            raise SettingsError("workers", expected="1 or more", got=str(self.workers))


def meshes(
    mask: NDArray[Any],
    geometry: Geometry,
    labels: LabelSet,
    *,
    options: MeshOptions | None = None,
) -> list[Mesh]:
    """The surface of each label that occurs, closed also where it touches the mask's edge.

    Args:
        mask: (I, J, K) integers; 0 is background.
        geometry: Its grid.
        labels: Which values are wanted, in this order.
        options: How; None for the usual.

    Returns:
        One mesh per label that has a voxel. Without ``reduction`` each encloses the volume of
        its voxels, about their centroid.

    Raises:
        InputError: The mask is not (I, J, K) integers.
        MissingPackageError: Triangles are to be taken away, and the package for it is missing.
    """
    check_mask(mask, geometry)
    wanted = options or MeshOptions()
    boxes = label_boxes(mask, labels.values)

    def make(label: Label) -> Mesh:
        crop = mask[boxes[label.value]] == label.value
        return mesh_of(crop, geometry.cut(boxes[label.value]), label, options=wanted)

    present = [label for label in labels.labels if label.value in boxes]
    if wanted.workers == 1 or len(present) < 2:
        return [make(label) for label in present]
    with ThreadPoolExecutor(wanted.workers) as pool:
        return list(pool.map(make, present))


def mesh_of(
    region: NDArray[np.bool_], geometry: Geometry, label: Label, *, options: MeshOptions
) -> Mesh:
    """The surface of one region.

    Args:
        region: (I, J, K), at least one voxel of it inside.
        geometry: Its grid.
        label: What it is.
        options: How.

    Raises:
        MissingPackageError: As for :func:`meshes`.
    """
    cells, codes, squares = _net(region)
    affine = geometry.affine_ras
    steps = affine[:3, :3]
    if np.linalg.det(steps) < 0:
        squares = squares[:, ::-1]
    # In the middles of the cells the surface runs along the voxels' sides: their very volume.
    exact = (cells - 0.5) @ steps.T
    smooth = exact if options.smoothing == 0 else _relaxed(cells, codes, squares, steps, options)
    faces = _triangles(smooth, squares)
    if options.smoothing:
        smooth = _with_volume_of(smooth, exact, faces, squares)
    mesh = Mesh(label, smooth + affine[:3, 3], faces)
    return _reduced(mesh, options.reduction) if options.reduction else mesh


def check_mask(mask: NDArray[Any], geometry: Geometry) -> None:
    """Refuse what is no mask on its grid.

    Raises:
        InputError: It is not (I, J, K) integers of the grid's shape.
    """
    if mask.ndim != 3 or mask.dtype.kind not in "iub" or mask.shape != geometry.shape:
        raise InputError(
            "mask", expected=f"whole numbers of shape {geometry.shape}",
            got=f"{mask.dtype} {mask.shape}",
        )  # fmt: skip


def label_boxes(mask: NDArray[Any], values: Sequence[int]) -> dict[int, Box]:
    """The box around each label that occurs, in one pass over the mask."""
    if mask.dtype.kind == "b":
        mask = mask.view(np.uint8)
    elif mask.dtype.kind == "i":
        # Values below 0 are no labels, and the search would stumble over them.
        mask = np.maximum(mask, 0)
    if mask.dtype.itemsize > 4:
        mask = np.minimum(mask, np.iinfo(np.int32).max).astype(np.int32)
    # It is many times slower where the first axis runs fastest in memory.
    turned = mask.strides[0] < mask.strides[-1]
    found = ndimage.find_objects(mask.T if turned else mask, max_label=max(values, default=0))
    boxes = {}
    for value in values:
        box = found[value - 1]
        if box is not None:
            a, b, c = box[::-1] if turned else box
            boxes[value] = (a, b, c)
    return boxes


def _net(
    region: NDArray[np.bool_],
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.int32]]:
    """Cells on the border (V, 3), which corners of each are inside (V,), and squares (F, 4).

    Cell (i, j, k) lies between the voxels (i - 1, j - 1, k - 1) and (i, j, k). Bit a + 2 b + 4 c
    of a code tells of the corner (a, b, c). Corners of the squares are rows of the cells,
    counter-clockwise seen from outside, in voxel indices.
    """
    padded = np.pad(region, 1).astype(np.uint8)
    codes = padded[:-1] | padded[1:] << 1
    codes = codes[:, :-1] | codes[:, 1:] << 2
    codes = codes[:, :, :-1] | codes[:, :, 1:] << 4
    flat = codes.ravel()
    border = np.flatnonzero((flat - np.uint8(1)) < 254)
    own = flat[border].astype(np.uint8, copy=False)
    rows = np.empty(flat.size, dtype=np.int32)
    rows[border] = np.arange(border.size, dtype=np.int32)
    _, height, depth = codes.shape
    step = (height * depth, depth, 1)
    squares = []
    for axis in range(3):
        # The edge from the cell's first corner along this axis: four cells meet there.
        first, other = own & 1, own >> (1 << axis) & 1
        u, v = step[(axis + 1) % 3], step[(axis + 2) % 3]
        for inside, places in (
            (1, (-u - v, -v, 0, -u)),
            (0, (-u - v, -u, 0, -v)),
        ):
            at = border[(first != other) & (first == inside)]
            squares.append(np.stack([rows[at + place] for place in places], axis=1))
    cells = np.stack(np.unravel_index(border, codes.shape), axis=1).astype(np.int32)
    return cells, own, np.concatenate(squares).astype(np.int32, copy=False)


@lru_cache(maxsize=1)
def _middles() -> NDArray[np.float64]:
    """(256, 3) mean of the places where the border cuts a cell's edges, from its middle."""
    corners = list(product((0, 1), repeat=3))
    table = np.zeros((256, 3))
    for code in range(1, 255):
        inside = {c: code >> (c[0] + 2 * c[1] + 4 * c[2]) & 1 for c in corners}
        cuts = [
            np.add(a, b) / 2
            for a, b in product(corners, corners)
            if a < b and sum(np.abs(np.subtract(a, b))) == 1 and inside[a] != inside[b]
        ]
        table[code] = np.mean(cuts, axis=0) - 0.5
    return table


def _relaxed(
    cells: NDArray[np.int32],
    codes: NDArray[np.uint8],
    squares: NDArray[np.int32],
    steps: NDArray[np.float64],
    options: MeshOptions,
) -> NDArray[np.float64]:
    """Vertices in mm, from the origin of the grid, smoothed inside their cells."""
    middles = cells - 0.5
    mean = _mean_of_neighbours(squares, len(cells))
    points = ((middles + _middles()[codes]) @ steps.T).astype(np.float32)
    for _ in range(options.smoothing):
        for share in (_SHRINK, _GROW):
            points += np.float32(share) * (mean @ points - points)
    away = points @ np.linalg.inv(steps).T - middles
    return np.asarray((middles + np.clip(away, -0.5, 0.5)) @ steps.T)


def _mean_of_neighbours(squares: NDArray[np.int32], count: int) -> sparse.csr_array:
    """(V, V) float32; each row sums to 1. Two squares share an edge, once in each direction."""
    start, end = squares.ravel(), np.roll(squares, -1, axis=1).ravel()
    degree = np.bincount(start, minlength=count)
    weight = (1.0 / degree).astype(np.float32)[start]
    return sparse.csr_array((weight, (start, end)), shape=(count, count))


def _triangles(points: NDArray[np.float64], squares: NDArray[np.int32]) -> NDArray[np.int32]:
    """(2 F, 3): each square cut along its shorter diagonal."""
    corners = points.astype(np.float32)
    a, b, c, d = (corners[squares[:, n]] for n in range(4))
    turn = ((a - c) ** 2).sum(axis=1) > ((b - d) ** 2).sum(axis=1)
    squares = np.where(turn[:, None], np.roll(squares, -1, axis=1), squares)
    return np.concatenate([squares[:, [0, 1, 2]], squares[:, [0, 2, 3]]])


def _with_volume_of(
    points: NDArray[np.float64],
    exact: NDArray[np.float64],
    faces: NDArray[np.int32],
    squares: NDArray[np.int32],
) -> NDArray[np.float64]:
    """Each connected piece moved along its normals to the volume and centroid of the exact one."""
    count = len(points)
    links = sparse.csr_array(
        (np.ones(3 * len(squares), dtype=np.int32),
         (squares[:, :3].ravel(), squares[:, 1:].ravel())), shape=(count, count),
    )  # fmt: skip
    pieces, piece = sparse.csgraph.connected_components(links, directed=False)
    of_face = piece[faces[:, 0]]
    sizes = np.bincount(piece, minlength=pieces)[:, None]
    middle = _sums(exact, piece, pieces) / sizes
    wanted, place = _moments(exact - middle[piece], faces, of_face, pieces)
    local, own = points - middle[piece], exact - middle[piece]
    reach = np.abs(own).max(axis=1)
    away = _along_normals(local, faces, piece, wanted)
    local = local + np.clip(away, -reach, reach)[:, None] * _normals(local, faces)
    found, now = _moments(local, faces, of_face, pieces)
    # A few voxels may shrink to nothing or turn inside out; then their own sides are kept.
    lost = ~(np.abs(found - wanted) <= _MOST_MISSED * np.abs(wanted))
    shift = np.where(lost[:, None], 0.0, place - now)
    local = np.where(lost[piece, None], own, local)
    return np.asarray(local + (shift + middle)[piece])


def _moments(
    points: NDArray[np.float64], faces: NDArray[np.int32], of_face: NDArray[Any], pieces: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Signed volume (P,) and centroid (P, 3) of each piece."""
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    wedges = np.einsum("ij,ij->i", a, np.cross(b, c)) / 6
    volumes = np.bincount(of_face, wedges, minlength=pieces)
    places = _sums((a + b + c) / 4 * wedges[:, None], of_face, pieces)
    return volumes.astype(np.float64), places / np.where(volumes == 0, 1.0, volumes)[:, None]


def _sums(rows: NDArray[np.float64], group: NDArray[Any], groups: int) -> NDArray[np.float64]:
    """(G, 3) sum of the rows of each group."""
    return np.stack([np.bincount(group, rows[:, n], minlength=groups) for n in range(3)], axis=1)


def _normals(points: NDArray[np.float64], faces: NDArray[np.int32]) -> NDArray[np.float64]:
    """(V, 3) of length 1, outwards; large triangles count for more."""
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    across = np.cross(b - a, c - a)
    summed = np.zeros((len(points), 3))
    for corner in range(3):
        summed += _sums(across, faces[:, corner], len(points))
    length = np.linalg.norm(summed, axis=1, keepdims=True)
    return summed / np.where(length == 0, 1.0, length)


def _along_normals(
    points: NDArray[np.float64],
    faces: NDArray[np.int32],
    piece: NDArray[Any],
    wanted: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(V,) mm to go along the normals, the same for all of a piece.

    The volume is a polynomial of third degree in that distance, so that four values give it.
    """
    normals, of_face, pieces = _normals(points, faces), piece[faces[:, 0]], len(wanted)
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    p, q, r = (normals[faces[:, corner]] for corner in range(3))

    def summed(*terms: tuple[NDArray[Any], NDArray[Any], NDArray[Any]]) -> NDArray[np.float64]:
        wedges = sum(np.einsum("ij,ij->i", x, np.cross(y, z)) for x, y, z in terms) / 6
        return np.bincount(of_face, wedges, minlength=pieces).astype(np.float64)

    terms = (
        summed((a, b, c)) - wanted,
        summed((p, b, c), (a, q, c), (a, b, r)),
        summed((p, q, c), (p, b, r), (a, q, r)),
        summed((p, q, r)),
    )
    distance = np.zeros(pieces)
    for _ in range(_NEWTON_STEPS):
        value = terms[0] + distance * (terms[1] + distance * (terms[2] + distance * terms[3]))
        slope = terms[1] + distance * (2 * terms[2] + distance * 3 * terms[3])
        distance -= np.divide(value, slope, out=np.zeros(pieces), where=np.abs(slope) > 1e-9)
    return np.asarray(np.nan_to_num(distance, posinf=0.0, neginf=0.0)[piece])


def _reduced(mesh: Mesh, reduction: float) -> Mesh:
    """The mesh with fewer triangles (M. Garland, P. Heckbert, 1997), and its volume as before."""
    package = require("fast_simplification", extra="mesh", feature="taking triangles away")
    middle = mesh.vertices_mm.mean(axis=0)
    points, faces = package.simplify(
        (mesh.vertices_mm - middle).astype(np.float32), mesh.faces, target_reduction=reduction
    )
    made = np.asarray(points, dtype=np.float64), np.asarray(faces, dtype=np.int32)
    one, wanted = np.zeros(len(made[0]), dtype=np.intp), np.array([mesh.volume_mm3])
    away = _along_normals(*made, one, wanted)
    grown = middle + made[0] + away[:, None] * _normals(*made)
    found = replace(mesh, vertices_mm=grown, faces=made[1])
    # Small organs have no triangles to spare.
    if not abs(found.volume_mm3 - mesh.volume_mm3) <= _MOST_MISSED * mesh.volume_mm3:
        return mesh
    return replace(found, vertices_mm=grown + mesh.centroid_mm - found.centroid_mm)
