"""Write a scan as NIfTI: for scans whose own grid no mask can be written on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.geometry import Geometry
from medseg.io.atomic import whole_file


def write_nifti_scan(path: Path, voxels: NDArray[Any], geometry: Geometry) -> None:
    """Write voxels (C, I, J, K) as NIfTI-1, whole or not at all; several channels last.

    Both qform and sform get code 1 and the grid's affine, in mm.

    Raises:
        OutputError: The disk is full or the folder cannot be written.
    """
    import nibabel as nib

    array = voxels[0] if voxels.shape[0] == 1 else np.moveaxis(voxels, 0, -1)
    image = nib.Nifti1Image(array, geometry.affine_ras)
    image.set_qform(geometry.affine_ras, code=1)
    image.set_sform(geometry.affine_ras, code=1)
    image.header.set_xyzt_units("mm")
    with whole_file(path) as temporary:
        nib.save(image, temporary)
