"""Where the frames of a segmentation lie: on the grid of a scan, or on one of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import GeometryError
from medseg.core.geometry import Geometry
from medseg.io.dicom_geometry import Stack, gaps_text, stack
from medseg.io.dicom_records import Slice

# Part of a voxel that a frame may lie beside the grid: headers hold rounded numbers, and the
# slices of an even series may stray by a twentieth of their distance.
_OFF_GRID_VOXELS = 0.1
_MOST_SLICES = 65_535


def grid_of_frames(frames: Sequence[Slice], *, between_mm: float, where: str) -> Geometry:
    """The grid that the frames themselves lie on, slices without a frame included.

    Args:
        frames: In any order; several may lie at one place.
        between_mm: Distance of slices as stated; 0 unknown.
        where: What to call them in messages.

    Raises:
        GeometryError: They make no grid.
    """
    distinct = {piece.position: piece for piece in frames}
    made = stack(list(distinct.values()))
    for step_mm in (between_mm, min(made.gaps_mm, default=0.0)):
        filled = _filled(made, step_mm)
        if filled is not None and filled.geometry is not None and filled.even:
            return filled.geometry
    if made.geometry is not None and made.even:
        return made.geometry
    raise GeometryError(
        where,
        expected="frames of one volume",
        got="; ".join(made.faults) or f"uneven distances ({gaps_text(made.gaps_mm)})",
        cure="Put the series that it was drawn on beside it.",
    )


def _filled(made: Stack, step_mm: float) -> Stack | None:
    """The stack with slices where frames are missing; None where it has no such step."""
    if step_mm <= 0 or not made.gaps_mm:
        return None
    steps = np.concatenate([[0.0], np.cumsum(made.gaps_mm)]) / step_mm
    if not steps[-1] < _MOST_SLICES or np.abs(steps - np.rint(steps)).max() > _OFF_GRID_VOXELS:
        return None
    count = int(np.rint(steps[-1]))
    first, last = (np.array(made.slices[end].position) for end in (0, -1))
    places = {int(np.rint(step)): piece for step, piece in zip(steps, made.slices, strict=True)}
    return stack(
        [
            places.get(n)
            or replace(
                made.slices[0], position=tuple(float(p) for p in first + n / count * (last - first))
            )
            for n in range(count + 1)
        ]
    )


@dataclass(frozen=True)
class Place:
    """Where a frame lies on a grid: its first pixel, and steps along columns and rows."""

    start: NDArray[np.intp]
    along_row: NDArray[np.intp]
    down_column: NDArray[np.intp]
    shape: tuple[int, int]

    @property
    def far_corners(self) -> NDArray[np.intp]:
        """Indices of the first and of the last pixel."""
        rows, columns = self.shape
        last = self.start + (rows - 1) * self.down_column + (columns - 1) * self.along_row
        return np.stack([self.start, last])

    def cells(
        self, pixels: tuple[NDArray[Any], ...], geometry: Geometry, *, where: str
    ) -> tuple[NDArray[Any], ...]:
        """Indices along I, J and K of pixels given by row and column.

        Raises:
            GeometryError: One lies outside the grid.
        """
        rows, columns = pixels
        found = [
            self.start[axis] + self.down_column[axis] * rows + self.along_row[axis] * columns
            for axis in range(3)
        ]
        limits = zip(found, geometry.shape, strict=True)
        if any(line.size and (line.min() < 0 or line.max() >= side) for line, side in limits):
            raise _beside(where, "pixels outside it")
        return tuple(found)


def placed(piece: Slice, geometry: Geometry, *, where: str) -> Place:
    """Find the pixels of a frame on a grid whose axes may run otherwise.

    Raises:
        GeometryError: They lie beside its voxels.
    """
    if piece.position is None or piece.orientation is None or piece.spacing is None:
        raise _beside(where, "a frame without a position")
    origin, spacing, direction = geometry.to_lps()
    to_index = np.linalg.inv(np.reshape(direction, (3, 3)) * spacing)
    rows, columns = piece.shape
    cosines = np.array(piece.orientation, dtype=np.float64)
    start = to_index @ (np.array(piece.position) - origin)
    along = to_index @ (cosines[:3] * piece.spacing[1])
    down = to_index @ (cosines[3:] * piece.spacing[0])
    exact = np.array([start, start + (columns - 1) * along, start + (rows - 1) * down])
    if not np.abs(exact).max() < 1e6:
        raise _beside(where, "a frame far away")
    steps = np.rint([along, down])
    whole = np.rint(start) + np.array(
        [0 * steps[0], (columns - 1) * steps[0], (rows - 1) * steps[1]]
    )
    stray = float(np.abs(exact - whole).max())
    if stray > _OFF_GRID_VOXELS or not (np.abs(steps).sum(axis=1) == 1).all():
        raise _beside(where, f"a frame up to {stray:.3g} voxels beside it")
    first = whole[0].astype(np.intp)
    along_row, down_column = steps.astype(np.intp)
    return Place(first, along_row, down_column, piece.shape)


def _beside(where: str, got: str) -> GeometryError:
    return GeometryError(
        where,
        expected="frames on the grid of the scan",
        got=got,
        cure="Give the series that it was drawn on, or resample one of them.",
    )
