"""DICOM structure sets (RTSTRUCT, PS3.3 A.19) as label images.

A voxel belongs to a structure when its centre lies inside the contours on its slice, by the
even-odd rule: a contour within another is a hole, and so is what a keyhole contour leaves out
(PS3.3 C.8.8.6.3).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import FileError, GeometryError
from medseg.core.geometry import Geometry, Orientation
from medseg.core.labels import Colour, LabelSet
from medseg.core.scan import Scan
from medseg.io.dicom_header import read_instance
from medseg.io.dicom_labels import (
    Canvas,
    LabelledMask,
    Structure,
    chosen,
    damaged,
    label_set_of,
    parsing,
    place_of,
    read_elements,
    structures_of,
)
from medseg.io.dicom_parts import Part, part_of
from medseg.io.dicom_records import Header, Instance

_LOG = logging.getLogger(__name__)

RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_TAGS = ("charset", "frames_of_reference", "rois", "roi_contours")
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
# A contour may lie this far from a slice, in slice distances; farther, and it is on none.
_OFF_SLICE = 0.5
# Contours whose planes are nearer than this lie in one plane, in slice distances.
_SAME_PLANE = 0.02
# Places are rounded to this part of a pixel, so that an edge that runs through the centres of
# pixels runs through all of them.
_DECIMALS = 6
_MOST_CROSSINGS = 1 << 21


@dataclass(frozen=True)
class Outline:
    """The closed contours of one structure: points (N, 3) in LPS mm each."""

    structure: Structure
    contours: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True)
class StructureSet:
    """A structure set as its file describes it.

    Attributes:
        part: The file.
        outlines: Structures that have a closed contour.
        references: UIDs of the series that they were drawn on.
    """

    part: Part
    outlines: tuple[Outline, ...]
    references: tuple[str, ...]

    @property
    def structures(self) -> tuple[Structure, ...]:
        """Number, name and colour of each."""
        return tuple(outline.structure for outline in self.outlines)

    @property
    def label_set(self) -> LabelSet:
        """Label values, names and colours.

        Raises:
            LabelError: There are none.
        """
        return label_set_of(self.structures, where=place_of(self.part))


def read_rtstruct(
    file: str | Path | Part, *, source: Scan, labels: LabelSet | None = None
) -> LabelledMask:
    """Read a structure set as a label image.

    Slices between those with contours stay as they are: nothing is interpolated. Where
    structures overlap the later one stays, and a warning says how many voxels that concerns.

    Args:
        file: The structure set.
        source: The scan it was drawn on.
        labels: Structures wanted by their names, in painting order, with the values they get;
            None takes all with their ROI numbers.

    Returns:
        Values (I, J, K) on the grid of ``source``.

    Raises:
        FileError: The file is no structure set, or damaged.
        GeometryError: A contour lies on no slice of the scan.
        LabelError: No structure has a closed contour.
    """
    part = file if isinstance(file, Part) else part_of(Path(file))
    instance = read_instance(part)
    if instance is None or instance.sop_class != RTSTRUCT_CLASS:
        raise FileError(str(part.path), expected="a DICOM structure set", got="another object")
    return rasterise(describe_rtstruct(instance), source=source, labels=labels)


def describe_rtstruct(instance: Instance) -> StructureSet:
    """Read the structures and contours of a structure set.

    Points and open contours enclose nothing; they are left out, with a warning.

    Raises:
        FileError: A contour is no list of points.
    """
    with parsing(instance.part):
        return _described(instance.part)


def _described(part: Part) -> StructureSet:
    header = read_elements(part, _TAGS)
    names = _names(header)
    rows: list[tuple[int, str, Colour | None]] = []
    drawn: list[tuple[NDArray[np.float64], ...]] = []
    left_out = 0
    for item in header.items("roi_contours"):
        number = int(item.number("roi_reference", -1.0))
        contours = tuple(_contours(item, part))
        closed = tuple(points for points in contours if points is not None)
        left_out += len(contours) - len(closed)
        if closed:
            rows.append((number, names.get(number, ""), _colour(item)))
            drawn.append(closed)
    if left_out:
        _LOG.warning("%s: %d points and open contours are left out", place_of(part), left_out)
    structures = structures_of(rows, kind="region")
    return StructureSet(
        part,
        tuple(Outline(*pair) for pair in zip(structures, drawn, strict=True)),
        tuple(dict.fromkeys(_references(header))),
    )


def rasterise(found: StructureSet, *, source: Scan, labels: LabelSet | None = None) -> LabelledMask:
    """Fill the contours of a structure set on a grid, as :func:`read_rtstruct` says."""
    where = place_of(found.part)
    label_set = found.label_set if labels is None else labels
    wanted = chosen(found.structures, label_set, where=where)
    by_number = {outline.structure.name: outline for outline in found.outlines}
    outlines = [(by_number[structure.name], value) for structure, value in wanted]
    turn = _slices_last(source.geometry, [c for outline, _ in outlines for c in outline.contours])
    canvas = Canvas(source.geometry.reoriented(turn), label_set, where=where)
    for outline, value in outlines:
        for k, inside in _filled_slices(outline, canvas.geometry, where=where):
            i, j = np.nonzero(inside)
            canvas.paint((i, j, np.full_like(i, k)), value)
    mask = canvas.mask()
    turned = np.ascontiguousarray(turn.inverse().apply(mask.labels))
    return LabelledMask(turned, source.geometry, mask.label_set, mask.source)


def fill(polygons: Iterable[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose centre lies inside polygons, by the even-odd rule over all of them.

    A centre on an edge belongs to the side of larger indices, so that two polygons that share
    an edge share no pixel.

    Args:
        polygons: Corners (N, 2) each, as indices along I and J; closed by themselves.
        shape: Pixels along I and J.

    Returns:
        (I, J) bool.
    """
    first, line = np.divmod(_crossings(polygons, shape), shape[1])
    inside = np.zeros(shape, dtype=np.bool_)
    if not len(first):
        return inside
    # Each crossing of a line of pixel centres turns all pixels behind it inside out.
    low, high = (int(first.min()), int(line.min())), (int(first.max()), int(line.max()))
    size = high[0] - low[0] + 1, high[1] - low[1] + 1
    places = (first - low[0]) * size[1] + line - low[1]
    turns = np.bincount(places, minlength=size[0] * size[1]).reshape(size).astype(np.uint8)
    turned = np.bitwise_xor.accumulate(turns & 1, axis=0)
    inside[low[0] : high[0], low[1] : high[1] + 1] = turned[:-1]
    return inside


def _crossings(polygons: Iterable[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.intp]:
    """Where edges cross the lines of pixel centres along I: first index behind * lines + line."""
    found = [np.zeros(0, dtype=np.intp)]
    for corners in polygons:
        points = np.round(corners, _DECIMALS)
        for start, end in _pieces(points, np.roll(points, -1, axis=0), shape[1]):
            low = np.clip(np.ceil(np.minimum(start[:, 1], end[:, 1])), 0, shape[1])
            high = np.clip(np.ceil(np.maximum(start[:, 1], end[:, 1])), 0, shape[1])
            count = (high - low).astype(np.intp)
            edge = np.repeat(np.arange(len(count)), count)
            j = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + low[edge]
            slope = (end[edge, 0] - start[edge, 0]) / (end[edge, 1] - start[edge, 1])
            i = np.round(start[edge, 0] + (j - start[edge, 1]) * slope, _DECIMALS)
            first = np.clip(np.ceil(i), 0, shape[0]).astype(np.intp)
            found.append(first * shape[1] + j.astype(np.intp))
            if sum(map(len, found)) > _MOST_CROSSINGS:
                # Two at one place undo each other.
                found = [np.flatnonzero(np.bincount(np.concatenate(found)) & 1)]
    return np.concatenate(found)


def _pieces(
    start: NDArray[np.float64], end: NDArray[np.float64], lines: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Edges in pieces that cross no more than a bounded number of lines."""
    size = max(1, _MOST_CROSSINGS // max(1, lines))
    for first in range(0, len(start), size):
        yield start[first : first + size], end[first : first + size]


def _filled_slices(
    outline: Outline, geometry: Geometry, *, where: str
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """The slices on which a structure lies, with the pixels inside (I, J)."""
    planes: dict[int, list[tuple[float, NDArray[np.float64]]]] = {}
    for contour in outline.contours:
        k, offset, corners = _on_slice(contour, geometry, name=outline.structure.name, where=where)
        planes.setdefault(k, []).append((offset, corners))
    left_out = 0
    for k, contours in planes.items():
        # Contours denser than slices: those of the nearest plane alone, or they would cancel.
        nearest = min(abs(offset) for offset, _ in contours)
        plane = next(offset for offset, _ in contours if abs(offset) == nearest)
        chosen_ones = [c for offset, c in contours if abs(offset - plane) <= _SAME_PLANE]
        left_out += len(contours) - len(chosen_ones)
        yield k, fill(chosen_ones, geometry.shape[:2])
    if left_out:
        _LOG.warning(
            "%s: %d contours of '%s' lie between slices and are left out",
            where,
            left_out,
            outline.structure.name,
        )


def _on_slice(
    contour: NDArray[np.float64], geometry: Geometry, *, name: str, where: str
) -> tuple[int, float, NDArray[np.float64]]:
    """The slice of a contour, how far off it lies, and its corners as indices on it (N, 2)."""
    origin, spacing, direction = geometry.to_lps()
    axes = np.reshape(direction, (3, 3)) * spacing
    normal = np.cross(axes[:, 0], axes[:, 1])
    normal = normal / np.linalg.norm(normal)
    apart_mm = float(axes[:, 2] @ normal)
    places = (contour - origin) @ normal / apart_mm
    k = int(np.clip(np.rint(np.median(places)), 0, geometry.shape[2] - 1))
    off = float(np.abs(places - k).max())
    if not off <= _OFF_SLICE + 1e-3:
        raise GeometryError(
            f"{where}, '{name}'",
            expected="contours on the slices of its scan",
            got=f"points {off * abs(apart_mm):.3g} mm from the nearest slice "
            f"(slices lie {abs(apart_mm):.3g} mm apart)",
            cure="Give the whole series that it was drawn on.",
        )
    # Along the normal onto the slice: with a tilted gantry that is not along K.
    flat = contour - np.outer((places - k) * apart_mm, normal) - origin
    corners = np.linalg.solve(axes, flat.T).T[:, :2].astype(np.float64)
    return k, float(np.median(places)) - k, corners


def _slices_last(geometry: Geometry, contours: Sequence[NDArray[np.float64]]) -> Orientation:
    """What brings the axis across the contours to the end: scans may have been turned since."""
    origin, spacing, direction = geometry.to_lps()
    to_index = np.linalg.inv(np.reshape(direction, (3, 3)) * spacing)
    spread = np.zeros(3)
    for contour in contours:
        places = (contour - origin) @ to_index.T
        spread = np.maximum(spread, places.max(axis=0) - places.min(axis=0))
    # K, but for contours that clearly lie across another axis.
    across = int(np.argmin(spread)) if spread[2] > 2 * _OFF_SLICE else 2
    first, second = (axis for axis in range(3) if axis != across)
    return Orientation((first, second, across), (False, False, False))


def _names(header: Header) -> dict[int, str]:
    charset = header.text("charset")
    return {
        int(item.number("roi_number", -1.0)): item.readable("roi_name", charset=charset)
        for item in header.items("rois")
    }


def _references(header: Header) -> Iterator[str]:
    for frame in header.items("frames_of_reference"):
        for study in frame.items("referenced_study"):
            for series in study.items("rt_series"):
                uid = series.text("series_uid")
                if uid:
                    yield uid


def _colour(item: Header) -> Colour | None:
    stated = item.vector("roi_colour", 3)
    if stated is None or not all(0 <= part <= 255 for part in stated):
        return None
    red, green, blue = (int(part) for part in stated)
    return red, green, blue


def _contours(item: Header, part: Part) -> Iterator[NDArray[Any] | None]:
    """Points (N, 3) of each contour; None for one that encloses nothing."""
    for contour in item.items("contours"):
        if contour.text("contour_type").upper() not in _CLOSED:
            yield None
            continue
        try:
            points = np.array(contour.text("contour_data").split("\\"), dtype=np.float64)
            points = points.reshape(-1, 3)
        except ValueError as error:
            raise damaged(part, "a contour that is no list of points") from error
        if not (np.abs(points) < 1e7).all():
            raise damaged(part, "a contour beyond reason")
        yield points if len(points) >= 3 else None
