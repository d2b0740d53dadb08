"""Where the slices of a series lie: what a grid with even steps cannot say of uneven ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.core.geometry import FloatTriple, Geometry

# Nearer than this to a whole number, in voxels, a slice lies on a plane of the grid.
_ON_PLANE = 1e-3


@dataclass(frozen=True)
class SlicePlaces:
    """The original slices behind a scan, in order of position along their normal.

    Attributes:
        places_k: Where each lies along K of the scan's grid, in voxels, ascending.
        along_mm: The same along the normal of the slices, in mm.
        positions_mm: DICOM's ImagePositionPatient of each, as its file states it: the centre
            of the first pixel, LPS+ (PS3.3 C.7.6.2.1.1).
    """

    places_k: tuple[float, ...]
    along_mm: tuple[float, ...]
    positions_mm: tuple[FloatTriple, ...]

    @property
    def even(self) -> bool:
        """Whether the slices are the planes of the scan's grid, one by one."""
        places = np.asarray(self.places_k)
        return bool(np.abs(places - np.arange(len(places))).max(initial=0.0) <= _ON_PLANE)

    @property
    def thickness_mm(self) -> NDArray[np.float64]:
        """What each slice stands for along the normal: half the way to each neighbour.

        The first and the last stand for as much outwards as inwards. Needs two slices.
        """
        gaps = np.diff(np.asarray(self.along_mm, dtype=np.float64))
        both = np.concatenate([gaps[:1], gaps]) + np.concatenate([gaps, gaps[-1:]])
        return np.asarray(both / 2, dtype=np.float64)

    @property
    def header_error_mm(self) -> float:
        """How far the farthest slice lies from where :meth:`header_geometry` has it."""
        start, step = self._line()
        count = len(self.places_k)
        stray = np.abs(start + step * np.arange(count) - np.asarray(self.places_k)).max()
        length = self.places_k[-1] - self.places_k[0]
        per_place_mm = (self.along_mm[-1] - self.along_mm[0]) / length if length else 0.0
        return float(stray * per_place_mm)

    def header_geometry(self, geometry: Geometry) -> Geometry:
        """The even grid, one plane per slice, that lies nearest to the slices.

        Args:
            geometry: The scan's grid, on which ``places_k`` count.

        Returns:
            A line through the places by least squares; ``geometry`` itself for even slices.
        """
        if self.even:
            return geometry
        start, step = self._line()
        change = np.diag([1.0, 1.0, step, 1.0])
        change[2, 3] = start
        columns, rows, _ = geometry.shape
        return Geometry((columns, rows, len(self.places_k)), geometry.affine_ras @ change)

    def _line(self) -> tuple[float, float]:
        """Place of slice 0, and step from slice to slice, of the nearest even planes."""
        if len(self.places_k) < 2:
            return self.places_k[0], 1.0
        step, start = np.polyfit(np.arange(len(self.places_k)), np.asarray(self.places_k), 1)
        return float(start), float(step)
