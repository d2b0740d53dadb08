"""Scans that are in memory already: images of nibabel and SimpleITK, arrays."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from medseg.core.errors import InputError
from medseg.core.geometry import Geometry
from medseg.core.scan import Scan
from medseg.io.nifti import scan_from_nibabel


def scan_from_memory(source: Any) -> Scan:
    """A scan from a nibabel or SimpleITK image, or from ``(array, affine)``.

    Args:
        source: An image; or (I, J, K) or (C, I, J, K) voxels with a 4x4 RAS+ affine in mm.

    Raises:
        InputError: It is none of these, or its voxels are no real numbers.
    """
    # Whoever has such an image has loaded nibabel; loading it here would take longer.
    nibabel = sys.modules.get("nibabel")
    if nibabel is not None and isinstance(source, nibabel.spatialimages.SpatialImage):
        return scan_from_nibabel(source)
    if isinstance(source, tuple) and len(source) == 2:
        return _from_array(*source)
    if type(source).__module__.startswith("SimpleITK"):
        from medseg.io.itk import scan_from_sitk

        return scan_from_sitk(source)
    raise InputError(
        "scan",
        expected="a path, a nibabel or SimpleITK image, or (array, affine)",
        got=type(source).__name__,
    )


def _from_array(array: Any, affine: Any) -> Scan:
    voxels = np.asarray(array)
    if voxels.ndim not in (3, 4) or voxels.dtype.kind not in "biuf":
        raise InputError(
            "array",
            expected="real numbers (I, J, K) or (C, I, J, K)",
            got=f"{voxels.dtype} {voxels.shape}",
        )
    a, b, c = (int(side) for side in voxels.shape[-3:])
    return Scan.from_array(voxels, Geometry((a, b, c), np.asarray(affine)))
