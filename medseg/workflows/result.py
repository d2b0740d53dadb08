"""What a segmented scan is to people who use medseg from Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from medseg.core.errors import InputError
from medseg.core.labels import LabelSet
from medseg.core.results import Prediction
from medseg.io.itk import to_sitk
from medseg.io.nifti_mask import to_nibabel
from medseg.workflows import segment

if TYPE_CHECKING:
    import nibabel as nib
    import SimpleITK


@dataclass(frozen=True)
class Result:
    """One segmented scan.

    Attributes:
        prediction: The mask with its grid, labels and provenance.
    """

    prediction: Prediction

    @property
    def labels(self) -> NDArray[Any]:
        """(I, J, K) uint8 or uint16 mask values on the scan's own grid."""
        return self.prediction.labels

    @property
    def label_set(self) -> LabelSet:
        """What the values mean."""
        return self.prediction.label_set

    @property
    def affine(self) -> NDArray[Any]:
        """(4, 4) voxel to RAS+ mm."""
        return self.prediction.geometry.affine_ras

    @property
    def provenance(self) -> dict[str, Any]:
        """Package hash, version, backend, options and input hash."""
        return self.prediction.provenance

    def volumes_ml(self) -> dict[str, float]:
        """Volume of each label in millilitres."""
        return self.prediction.volumes_ml()

    def to_nibabel(self) -> nib.Nifti1Image | nib.Nifti2Image:
        """The mask as a nibabel image with the scan's qform, sform and codes."""
        return to_nibabel(self.prediction)

    def to_sitk(self) -> SimpleITK.Image:
        """The mask as a SimpleITK image with the scan's geometry."""
        return to_sitk(self.prediction)

    def save(self, path: str | Path) -> Path:
        """Write the mask as NIfTI and its sidecar beside it, whole or not at all.

        Raises:
            InputError: The name does not end in .nii or .nii.gz.
            OutputError: The disk is full or the folder cannot be written.
        """
        path = Path(path)
        if not path.name.endswith((".nii", ".nii.gz")):
            raise InputError(str(path), expected="a name ending in .nii.gz or .nii", got=path.name)
        segment.write(self.prediction, path)
        return path
