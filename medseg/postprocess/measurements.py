"""Figures of each label: size, place, form, diameters, intensities, and whether it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist, squareform

from medseg.core.errors import GeometryError
from medseg.core.geometry import Geometry
from medseg.core.labels import Label, LabelSet
from medseg.core.results import Figure, Measurements
from medseg.postprocess.components import label_components
from medseg.postprocess.contours import contours, plane_axis
from medseg.postprocess.surfaces import Box, MeshOptions, check_mask, label_boxes, mesh_of

Array = NDArray[Any]
Points = NDArray[np.float64]

WHOLE, CUT_OFF, ABSENT = "whole", "cut off", "absent"
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
_XYZ = ("x", "y", "z")
_SHAPE_COLUMNS = (
    "label", "value", "status", "cut_off_at", "voxels", "parts", "volume_ml", "surface_mm2",
    "sphericity", *(f"centroid_{axis}_mm" for axis in _XYZ),
    *(f"box_{end}_{axis}_mm" for end in ("min", "max") for axis in _XYZ),
    "diameter_axial_mm", "perpendicular_axial_mm", "diameter_axial_slice", "diameter_3d_mm",
)  # fmt: skip
_INTENSITY_COLUMNS = ("mean", "sd", "min", "p5", "median", "p95", "max", "invalid_voxels")
# Places along a diameter at which the width across it is looked at.
_CHORDS = 257
_FEW_POINTS = 12


@dataclass(frozen=True)
class _Case:
    """What the labels of one mask share."""

    mask: Array
    geometry: Geometry
    voxels: Array | None
    columns: tuple[tuple[str, ...], ...]


def measure(
    mask: Array,
    geometry: Geometry,
    labels: LabelSet,
    *,
    voxels: Array | None = None,
    channels: Sequence[str] = (),
    workers: int = 1,
) -> Measurements:
    """Measure each label of a mask.

    ``status`` is ``"whole"``, ``"cut off"`` where the label touches the edge of the scan
    (``cut_off_at`` names the sides, R L A P S I; its figures are those of the visible part),
    or ``"absent"``, which leaves all other figures empty. Surface and sphericity are those of
    the smooth surface of :mod:`medseg.postprocess.surfaces`. ``diameter_axial_mm`` is the
    longest line between two points of one region on one axial slice, and
    ``perpendicular_axial_mm`` the longest inside that region at right angles to it, as
    RECIST 1.1 measures (E. Eisenhauer et al., 2009). Boxes go along the patient's axes and
    hold whole voxels.

    Args:
        mask: (I, J, K) integers; 0 is background.
        geometry: Its grid.
        labels: What is measured.
        voxels: (C, I, J, K) or (I, J, K) intensities; None leaves them out. What is no number
            is counted in ``invalid_voxels`` and otherwise left out.
        channels: Names of several channels, for the names of the columns.
        workers: Labels measured at once.

    Raises:
        InputError: The mask is not (I, J, K) integers.
        GeometryError: The voxels are not on the mask's grid.
    """
    check_mask(mask, geometry)
    if voxels is not None:
        voxels = voxels[None] if voxels.ndim == 3 else voxels
        if voxels.shape[1:] != mask.shape:
            raise GeometryError(
                "the scan", expected=f"the mask's shape {mask.shape}", got=str(voxels.shape[1:])
            )
    case = _Case(mask, geometry, voxels, _intensity_columns(voxels, channels))
    columns = (*_SHAPE_COLUMNS, *(name for names in case.columns for name in names))
    boxes = label_boxes(mask, labels.values)

    def row(label: Label) -> dict[str, Figure]:
        facts: dict[str, Figure] = dict.fromkeys(columns)
        facts |= {"label": label.name, "value": label.value, "status": ABSENT, "voxels": 0}
        return facts | (_row(case, label, boxes[label.value]) if label.value in boxes else {})

    if workers == 1 or len(boxes) < 2:
        return Measurements(columns, tuple(row(label) for label in labels.labels))
    with ThreadPoolExecutor(workers) as pool:
        return Measurements(columns, tuple(pool.map(row, labels.labels)))


def _intensity_columns(
    voxels: Array | None, channels: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    if voxels is None:
        return ()
    if len(voxels) == 1:
        return (_INTENSITY_COLUMNS,)
    names = channels if len(channels) == len(voxels) else [str(n) for n in range(len(voxels))]
    return tuple(tuple(f"{column}_{name}" for column in _INTENSITY_COLUMNS) for name in names)


def _row(case: _Case, label: Label, box: Box) -> dict[str, Figure]:
    region = np.ascontiguousarray(case.mask[box] == label.value)
    geometry = case.geometry.cut(box)
    count = int(np.count_nonzero(region))
    volume_mm3 = count * geometry.voxel_volume_mm3
    mesh = mesh_of(region, geometry, label, options=MeshOptions())
    sides = cut_sides(case.geometry, box)
    facts: dict[str, Figure] = {
        "status": CUT_OFF if sides else WHOLE,
        "cut_off_at": sides,
        "voxels": count,
        "parts": label_components(region)[1],
        "volume_ml": volume_mm3 / 1000.0,
        "surface_mm2": mesh.area_mm2,
        "sphericity": float(np.cbrt(36.0 * np.pi * volume_mm3**2)) / mesh.area_mm2,
    }
    facts |= _place(region, geometry)
    facts |= _axial(region, geometry, label, start=box)
    flat = 1 in case.geometry.shape
    longest = facts["diameter_axial_mm"] if flat else _longest(mesh.vertices_mm)[0]
    facts["diameter_3d_mm"] = longest
    if case.voxels is not None:
        for names, channel in zip(case.columns, case.voxels, strict=True):
            facts |= dict(zip(names, _intensities(channel[box][region]), strict=True))
    return facts


def cut_sides(geometry: Geometry, box: Box) -> str:
    """Where a box touches the edge of the grid, as letters; axes of one voxel do not count."""
    sides = []
    for axis, (part, code) in enumerate(zip(box, geometry.axis_codes, strict=True)):
        if geometry.shape[axis] > 1:
            sides += [_OPPOSITE[code]] * (part.start == 0)
            sides += [code] * (part.stop == geometry.shape[axis])
    return "".join(sorted(sides, key="RLAPSI".index))


def _place(region: NDArray[np.bool_], geometry: Geometry) -> dict[str, Figure]:
    affine = geometry.affine_ras
    middle = []
    for axis, size in enumerate(region.shape):
        others = tuple(other for other in range(3) if other != axis)
        middle.append(np.average(np.arange(size), weights=region.sum(axis=others)))
    centre = affine[:3, :3] @ np.array(middle) + affine[:3, 3]
    # Of each line of voxels the ends alone can be the farthest in any direction.
    lines = region.any(axis=0)
    j, k = np.nonzero(lines)
    first = region.argmax(axis=0)[lines]
    last = region.shape[0] - 1 - region[::-1].argmax(axis=0)[lines]
    ends = np.stack([np.concatenate([first, last]), np.tile(j, 2), np.tile(k, 2)])
    places = affine[:3, :3] @ ends + affine[:3, 3:]
    half = np.abs(affine[:3, :3]).sum(axis=1) / 2
    low, high = places.min(axis=1) - half, places.max(axis=1) + half
    return {
        **{f"centroid_{axis}_mm": float(centre[n]) for n, axis in enumerate(_XYZ)},
        **{f"box_min_{axis}_mm": float(low[n]) for n, axis in enumerate(_XYZ)},
        **{f"box_max_{axis}_mm": float(high[n]) for n, axis in enumerate(_XYZ)},
    }


def _axial(
    region: NDArray[np.bool_], geometry: Geometry, label: Label, *, start: Box
) -> dict[str, Figure]:
    """The longest diameter of any region on any axial slice, and the width across it."""
    axis = plane_axis(geometry, "axial")
    value = LabelSet(labels=(label.model_copy(update={"value": 1}),))
    found = contours(np.moveaxis(region, axis, 2), _with_last(geometry, axis), value)
    steps = np.delete(geometry.affine_ras[:3, :3], axis, axis=1)
    across = steps[:, 0] / np.linalg.norm(steps[:, 0])
    down = steps[:, 1] - (steps[:, 1] @ across) * across
    frame = np.stack([steps.T @ across, steps.T @ down / np.linalg.norm(down)], axis=1)
    outlines = [(piece.rings[0][:, :2] @ frame, piece.slice_index) for piece in found.regions]
    outlines.sort(key=lambda item: -float(np.linalg.norm(np.ptp(item[0], axis=0))))
    best, chosen, ends = 0.0, 0, (np.zeros(2), np.zeros(2))
    outline = np.zeros((0, 2))
    for points, index in outlines:
        if float(np.linalg.norm(np.ptp(points, axis=0))) <= best:
            break
        length, pair = _longest(points)
        if length > best:
            best, chosen, ends, outline = length, index, pair, points
    return {
        "diameter_axial_mm": best,
        "perpendicular_axial_mm": _across(outline, *ends),
        "diameter_axial_slice": chosen + start[axis].start,
    }


def _with_last(geometry: Geometry, axis: int) -> Geometry:
    """The grid with one axis moved to the end, as ``numpy.moveaxis`` moves it."""
    order = [*(other for other in range(3) if other != axis), axis]
    affine = geometry.affine_ras[:, [*order, 3]]
    a, b, c = (geometry.shape[other] for other in order)
    return Geometry((a, b, c), affine)


def _longest(points: Points) -> tuple[float, tuple[Points, Points]]:
    """The largest distance between two of (N, 2 or 3) points, and these."""
    if len(points) > _FEW_POINTS:
        # Of points all on one line, or one plane, every pair is looked at.
        with suppress(QhullError):
            points = points[ConvexHull(points).vertices]
    away = squareform(pdist(points))
    first, second = np.unravel_index(int(away.argmax()), away.shape)
    return float(away[first, second]), (points[first], points[second])


def _across(outline: Points, start: Points, end: Points) -> float:
    """The longest line inside an outline (N, 2) at right angles to the one from start to end."""
    along = (end - start) / np.linalg.norm(end - start)
    frame = np.array([along, [-along[1], along[0]]])
    u, v = frame @ (outline - start).T
    nu, nv = np.roll(u, -1), np.roll(v, -1)
    longest = 0.0
    for place in np.linspace(u.min(), u.max(), _CHORDS)[1:-1]:
        hit = (u <= place) != (nu <= place)
        share = (place - u[hit]) / (nu[hit] - u[hit])
        heights = np.sort(v[hit] + share * (nv[hit] - v[hit]))
        longest = max(longest, float((heights[1::2] - heights[::2]).max(initial=0.0)))
    return longest


def _intensities(values: Array) -> tuple[Figure, ...]:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    invalid = int(values.size - finite.size)
    if finite.size == 0:
        return (*(None,) * (len(_INTENSITY_COLUMNS) - 1), invalid)
    exact = finite.astype(np.float64)
    low, middle, high = (float(p) for p in np.percentile(exact, [5.0, 50.0, 95.0]))
    return (
        float(exact.mean()), float(exact.std()), float(exact.min()), low, middle, high,
        float(exact.max()), invalid,
    )  # fmt: skip
