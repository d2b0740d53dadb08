"""From slices to a grid: sorted along the normal, spacing from positions, gaps named.

What a header claims of slice thickness or order counts for nothing here; positions do
(DICOM PS3.3 C.7.6.2.1.1). A tilted gantry gives a sheared affine, as the positions say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import GeometryError
from medseg.core.geometry import Geometry
from medseg.core.slices import SlicePlaces
from medseg.io.dicom_frames import normal_of
from medseg.io.dicom_records import Slice

# Two slices nearer than this lie at one place; scanners round positions to 0.01 or finer.
_SAME_PLACE_MM = 0.005
# A slice may stray by this part of a slice distance from where an even series has it.
_EVEN = 0.05
# Slices may stray sideways from one line by this part of a pixel.
_IN_LINE = 0.1
_SAME_DIRECTION = 1e-3
# A gap is bridged by interpolation, but most slices must be real ones.
_MOST_BRIDGED = 2


@dataclass(frozen=True)
class Stack:
    """Slices in order, and the grid they make.

    Attributes:
        slices: Sorted along the normal.
        geometry: The grid as the positions give it; for uneven gaps the nearest even one.
            None where ``faults`` say why there is none.
        gaps_mm: Distances between neighbours along the normal.
        even: Whether the slices themselves lie on the grid.
        tilt_degrees: Between the normal and the line on which the slices lie.
        faults: Why they make no grid.
        places_k: For each slice where it lies along K of the grid, in voxels.
    """

    slices: tuple[Slice, ...]
    geometry: Geometry | None = None
    gaps_mm: tuple[float, ...] = ()
    even: bool = True
    tilt_degrees: float = 0.0
    faults: tuple[str, ...] = ()
    places_k: tuple[float, ...] = ()


def stack(slices: Sequence[Slice]) -> Stack:
    """Sort slices along their normal and find the grid they lie on."""
    faults = _faults_of_slices(slices)
    if faults:
        return Stack(tuple(slices), faults=tuple(faults))
    positions = np.array([piece.position for piece in slices], dtype=np.float64)
    normal = np.array(normal_of(slices[0].orientation or ()))
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    ordered = tuple(slices[index] for index in order)
    positions, along = positions[order], along[order]
    gaps = tuple(float(gap) for gap in np.diff(along))
    if any(gap < _SAME_PLACE_MM for gap in gaps):
        return Stack(ordered, gaps_mm=gaps, faults=(_duplicates(along),))
    stray = _sideways_mm(positions, along)
    if stray > _IN_LINE * min(slices[0].spacing or (1.0,)):
        return Stack(ordered, gaps_mm=gaps, faults=(f"slices up to {stray:.3g} mm out of line",))
    return _on_grid(ordered, positions, along=along, gaps=gaps)


def places_of(made: Stack) -> SlicePlaces:
    """Where the slices of a stack with a grid lie, as its scan tells it."""
    normal = normal_of(made.slices[0].orientation or ())
    positions = [piece.position or (0.0, 0.0, 0.0) for piece in made.slices]
    return SlicePlaces(
        made.places_k,
        tuple(sum(a * b for a, b in zip(place, normal, strict=True)) for place in positions),
        tuple((place[0], place[1], place[2]) for place in positions),
    )


def doubled_places(slices: Sequence[Slice]) -> bool:
    """Whether parallel slices lie on each other (all must have a position and orientation)."""
    directions = np.array([piece.orientation for piece in slices])
    if np.abs(directions - directions[0]).max() > _SAME_DIRECTION:
        return False
    normal = np.array(normal_of(slices[0].orientation or ()))
    along = np.sort(np.array([piece.position for piece in slices]) @ normal)
    return bool((np.diff(along) < _SAME_PLACE_MM).any())


def gaps_text(gaps_mm: Sequence[float]) -> str:
    """Distances between slices with their counts: ``"5 mm x2, 10 mm x1"``."""
    counts = Counter(round(gap, 2) for gap in gaps_mm)
    shown = [f"{gap:g} mm x{count}" for gap, count in counts.most_common(4)]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def bridged(voxels: NDArray[Any], places_k: Sequence[float], count: int) -> NDArray[Any]:
    """Slices at uneven places as an even stack, by linear interpolation along K.

    Args:
        voxels: (K, J, I) slices.
        places_k: Where each lies on the even grid, ascending from 0 to ``count - 1``.
        count: Slices of the even grid.

    Returns:
        (count, J, I) of the same number type; a slice that lies on the grid is kept exactly.
    """
    even = np.empty((count, *voxels.shape[1:]), dtype=voxels.dtype)
    for number in range(count):
        after = int(np.searchsorted(places_k, number - 1e-3))
        after = min(max(after, 0), len(places_k) - 1)
        before = max(after - 1, 0)
        if after == before or abs(places_k[after] - number) <= 1e-3:
            even[number] = voxels[after]
            continue
        weight = (number - places_k[before]) / (places_k[after] - places_k[before])
        mixed = voxels[before] * (1.0 - weight) + voxels[after] * weight
        even[number] = np.rint(mixed) if voxels.dtype.kind in "iu" else mixed
    return even


def _faults_of_slices(slices: Sequence[Slice]) -> list[str]:
    first = slices[0]
    if any(piece.position is None or piece.orientation is None for piece in slices):
        return ["no position in the patient"]
    if any(piece.spacing is None or min(piece.spacing) <= 0 for piece in slices):
        return ["no pixel spacing"]
    faults = []
    sizes = sorted({piece.shape for piece in slices})
    if len(sizes) > 1:
        texts = ", ".join(f"{columns}x{rows}" for rows, columns in sizes[:3])
        faults.append(f"images of unequal size ({texts})")
    directions = np.array([piece.orientation for piece in slices])
    if np.abs(directions - directions[0]).max() > _SAME_DIRECTION:
        faults.append("mixed orientations")
    spacings = np.array([piece.spacing for piece in slices])
    if np.abs(spacings / spacings[0] - 1.0).max() > _SAME_DIRECTION:
        faults.append("unequal pixel spacing")
    row, column = directions[0][:3], directions[0][3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(length - 1.0) for length in lengths) > 0.01 or abs(row @ column) > 0.01:
        faults.append("directions that are no right angle")
    if not np.abs(np.array(first.position)).max() < 1e7 or not spacings.max() < 1e5:
        faults.append("a place beyond reason")
    return faults


def _duplicates(along: NDArray[np.float64]) -> str:
    doubled = int((np.diff(along) < _SAME_PLACE_MM).sum())
    places = len(along) - doubled
    return f"{len(along)} slices at {places} position{'s' if places > 1 else ''}"


def _sideways_mm(positions: NDArray[np.float64], along: NDArray[np.float64]) -> float:
    """How far slices stray from the line between the first and the last, at their height."""
    if len(positions) < 3:
        return 0.0
    share = (along - along[0]) / (along[-1] - along[0])
    line = positions[0] + share[:, None] * (positions[-1] - positions[0])
    return float(np.linalg.norm(positions - line, axis=1).max())


def _on_grid(
    slices: tuple[Slice, ...],
    positions: NDArray[np.float64],
    *,
    along: NDArray[np.float64],
    gaps: tuple[float, ...],
) -> Stack:
    first = slices[0]
    count, places = len(slices), np.arange(len(slices), dtype=np.float64)
    even, tilt = True, 0.0
    if gaps:
        total = float(along[-1] - along[0])
        straight = (along - along[0]) / total * (count - 1)
        even = bool(np.abs(straight - places).max() <= _EVEN)
        if not even:
            count = round(total / median_low(gaps)) + 1
            places = (along - along[0]) / total * (count - 1)
        step = (positions[-1] - positions[0]) / (count - 1)
        cosine = total / float(np.linalg.norm(positions[-1] - positions[0]))
        tilt = math.degrees(math.acos(min(1.0, cosine)))
    else:
        step = np.array(normal_of(first.orientation or ())) * (first.thickness or 1.0)
    if count > _MOST_BRIDGED * len(slices):
        fault = f"slices too far apart to be one volume ({gaps_text(gaps)})"
        return Stack(slices, gaps_mm=gaps, even=False, faults=(fault,))
    try:
        geometry = _geometry(first, positions[0], step=step, count=count)
    except GeometryError as error:
        return Stack(slices, gaps_mm=gaps, faults=(error.got or error.what,))
    return Stack(slices, geometry, gaps, even, round(tilt, 3), (), tuple(map(float, places)))


def _geometry(
    first: Slice, origin: NDArray[np.float64], *, step: NDArray[np.float64], count: int
) -> Geometry:
    directions = np.array(first.orientation).reshape(2, 3)
    row, column = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    rows_mm, columns_mm = first.spacing or (1.0, 1.0)
    step_mm = float(np.linalg.norm(step))
    direction = np.column_stack([row, column, step / step_mm])
    rows, columns = first.shape
    # Along a row the column index grows: I. PixelSpacing names the distance of rows first.
    return Geometry.from_lps(
        (columns, rows, count),
        tuple(origin),
        (columns_mm, rows_mm, step_mm),
        tuple(direction.ravel()),
    )
