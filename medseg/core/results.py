"""What comes out: a segmentation on the scan's own grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
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
