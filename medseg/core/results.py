"""What comes out: a segmentation on the scan's own grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.scan import NiftiForms


@dataclass(frozen=True)
class Prediction:
    """A mask with its meaning and its origin.

    Attributes:
        labels: (I, J, K) uint8 or uint16 mask values on ``geometry``.
        geometry: The scan's own grid.
        label_set: What the values mean.
        provenance: How it was made: package hash, version, backend, options, input hash.
        forms: The NIfTI placement fields of the scan, to be repeated in the mask.
    """

    labels: NDArray[Any]
    geometry: Geometry
    label_set: LabelSet
    provenance: dict[str, Any] = field(default_factory=dict)
    forms: NiftiForms | None = None

    def volumes_ml(self) -> dict[str, float]:
        """Volume of each label in millilitres: voxels times the volume of one voxel."""
        counts = np.bincount(self.labels.ravel(), minlength=max(self.label_set.values) + 1)
        per_voxel_ml = self.geometry.voxel_volume_mm3 / 1000.0
        return {
            label.name: float(counts[label.value] * per_voxel_ml) for label in self.label_set.labels
        }
