"""What comes out: a segmentation on the scan's own grid, and what is made from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.geometry import Geometry
from medseg.core.labels import Label, LabelSet
from medseg.core.scan import NiftiForms
from medseg.core.slices import SlicePlaces


@dataclass(frozen=True)
class Prediction:
    """A mask with its meaning and its origin.

    Attributes:
        labels: (I, J, K) uint8 or uint16 mask values on ``geometry``.
        geometry: The scan's own grid, or the one that was asked for.
        label_set: What the values mean.
        provenance: How it was made: package hash, version, backend, options, input hash.
        forms: The NIfTI placement fields of the scan, to be repeated in the mask.
        slices: Where the planes lie, of a mask with one plane per original slice.
    """

    labels: NDArray[Any]
    geometry: Geometry
    label_set: LabelSet
    provenance: dict[str, Any] = field(default_factory=dict)
    forms: NiftiForms | None = None
    slices: SlicePlaces | None = None

    def volumes_ml(self) -> dict[str, float]:
        """Volume of each label in millilitres: voxels times the volume of one voxel.

        Of planes at uneven distances each voxel counts with the thickness of its plane.
        """
        size = max(self.label_set.values) + 1
        if self.slices is None or self.slices.even:
            counts = np.bincount(self.labels.ravel(), minlength=size)
            volumes_mm3 = counts * self.geometry.voxel_volume_mm3
        else:
            planes = np.moveaxis(self.labels, 2, 0)
            areas = [np.bincount(plane.ravel(), minlength=size) for plane in planes]
            steps = self.geometry.affine_ras[:3, :3]
            pixel_mm2 = np.linalg.norm(np.cross(steps[:, 0], steps[:, 1]))
            volumes_mm3 = self.slices.thickness_mm @ np.array(areas) * pixel_mm2
        return {
            label.name: float(volumes_mm3[label.value] / 1000.0) for label in self.label_set.labels
        }


@dataclass(frozen=True, eq=False)
class Mesh:
    """The closed surface of one label.

    Attributes:
        label: What it shows.
        vertices_mm: (V, 3) float64, RAS+ in mm.
        faces: (F, 3) int32 rows of vertices, counter-clockwise seen from outside.
    """

    label: Label
    vertices_mm: NDArray[np.float64]
    faces: NDArray[np.int32]

    @property
    def area_mm2(self) -> float:
        """Sum of the areas of all triangles."""
        a, b, c = (self.vertices_mm[self.faces[:, corner]] for corner in range(3))
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)

    @property
    def volume_mm3(self) -> float:
        """What the surface encloses (divergence theorem)."""
        return float(self._wedges_mm3()[1].sum())

    @property
    def centroid_mm(self) -> NDArray[np.float64]:
        """(3,) middle of what the surface encloses; NaN where that is nothing."""
        places, volumes = self._wedges_mm3()
        total = volumes.sum()
        if total == 0:
            return np.full(3, np.nan)
        return np.asarray(volumes @ places / total + self._origin_mm())

    def _origin_mm(self) -> NDArray[np.float64]:
        # Far from the organ the wedges would be large, and their sum would lose its digits.
        return self.vertices_mm.mean(axis=0) if len(self.vertices_mm) else np.zeros(3)

    def _wedges_mm3(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Middle (F, 3), from the origin, and signed volume (F,) of origin and each triangle."""
        a, b, c = (self.vertices_mm[self.faces[:, n]] - self._origin_mm() for n in range(3))
        return (a + b + c) / 4, np.einsum("ij,ij->i", a, np.cross(b, c)) / 6


@dataclass(frozen=True, eq=False)
class Region:
    """One piece of a label on one slice: an outline, and the holes in it.

    Attributes:
        value: Of its label.
        slice_index: Along the axis that the slices are cut across.
        rings: (N, 3) float64 each, voxel indices (i, j, k) of the corners; the first is the
            outline, the others are holes, and each is closed by itself.
    """

    value: int
    slice_index: int
    rings: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True, eq=False)
class Contours:
    """Outlines of all labels, slice by slice.

    Attributes:
        geometry: The grid of the mask.
        label_set: What the values mean.
        axis: Of the grid, which the slices are cut across.
        regions: By label, then by slice.
    """

    geometry: Geometry
    label_set: LabelSet
    axis: int
    regions: tuple[Region, ...]

    def to_mm(self, ring: NDArray[np.float64]) -> NDArray[np.float64]:
        """Corners (N, 3) of a ring in RAS+ mm."""
        affine = self.geometry.affine_ras
        return np.asarray(ring @ affine[:3, :3].T + affine[:3, 3])

    def volume_mm3(self, value: int) -> float:
        """Area of a label's regions times the distance of the slices."""
        found = [self._moments(region)[0] for region in self.regions if region.value == value]
        return float(sum(found)) * self.geometry.voxel_volume_mm3

    def centroid_mm(self, value: int) -> NDArray[np.float64]:
        """(3,) middle of a label's regions in RAS+ mm; NaN where there is none."""
        total, places = 0.0, np.zeros(3)
        for region in self.regions:
            if region.value == value:
                area, moment = self._moments(region)
                total, places = total + area, places + moment
        return self.to_mm(places[None] / total)[0] if total else np.full(3, np.nan)

    def _moments(self, region: Region) -> tuple[float, NDArray[np.float64]]:
        """Area in pixels, and area times middle (i, j, k)."""
        across, down = (axis for axis in range(3) if axis != self.axis)
        total, moment = 0.0, np.zeros(3)
        for number, ring in enumerate(region.rings):
            x, y = ring[:, across], ring[:, down]
            x, y = x - ring[0, across], y - ring[0, down]
            cross = x * np.roll(y, -1) - np.roll(x, -1) * y
            area = cross.sum() / 2
            sign = (1.0 if area >= 0 else -1.0) * (-1.0 if number else 1.0)
            middle = ring[0] * area
            middle[across] += ((x + np.roll(x, -1)) * cross).sum() / 6
            middle[down] += ((y + np.roll(y, -1)) * cross).sum() / 6
            total, moment = total + sign * area, moment + sign * middle
        return float(total), moment


Figure = float | int | str | None


@dataclass(frozen=True)
class Measurements:
    """Figures of each label of a mask, absent ones too.

    Attributes:
        columns: Names of the figures, units in the names.
        rows: One per label, by column; None where a figure is not to be had.
    """

    columns: tuple[str, ...]
    rows: tuple[dict[str, Figure], ...]
