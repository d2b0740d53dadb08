"""Scans as nibabel and SimpleITK images, for programs that speak those."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from medseg.core import scan as core
from medseg.core.errors import GeometryError

if TYPE_CHECKING:
    import nibabel as nib

    NiftiImage: TypeAlias = nib.Nifti1Image

# ITK refuses directions that stray further from right angles than about this.
_MAX_SHEAR_VOXELS = 0.1


@dataclass(frozen=True)
class Scan(core.Scan):
    """A scan as users hold it: with ways out to nibabel and SimpleITK.

    The ground floor's :class:`medseg.core.scan.Scan` knows no file and no other library.
    """

    @classmethod
    def of(cls, scan: core.Scan) -> Scan:
        """The same scan, with the ways out."""
        return cls(**{field.name: getattr(scan, field.name) for field in fields(core.Scan)})

    def to_nibabel(self) -> NiftiImage:
        """Read the voxels into a nibabel image; see :func:`scan_to_nibabel`."""
        return scan_to_nibabel(self)

    def to_sitk(self) -> Any:
        """Read the voxels into a ``SimpleITK.Image``; see :func:`scan_to_sitk`."""
        return scan_to_sitk(self)


def scan_to_nibabel(scan: core.Scan) -> NiftiImage:
    """Put a scan into a nibabel image in RAS+ mm; channels become the fourth axis.

    qform and sform are those of the geometry (code 1, scanner); a sheared geometry stands in
    the sform alone. NIfTI-2 where a side has more than 32767 voxels.

    Raises:
        FileError: The voxels cannot be read.
    """
    import nibabel as nib

    voxels = scan.voxels()
    array = voxels[0] if len(scan.channels) == 1 else np.moveaxis(voxels, 0, -1)
    array = array.astype(np.uint8) if array.dtype == bool else array
    affine = scan.geometry.affine_ras
    large = max(array.shape) > np.iinfo(np.int16).max
    kind = nib.Nifti2Image if large else nib.Nifti1Image
    image = kind(array, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=1)
    # nibabel strips the shear from a qform; then it would tell another place than the sform.
    image.set_qform(affine, code=1 if scan.geometry.shear_voxels <= _MAX_SHEAR_VOXELS else 0)
    return image


def scan_to_sitk(scan: core.Scan) -> Any:
    """Put a scan into a ``SimpleITK.Image`` (3D) in LPS+ mm; channels become a vector image.

    Raises:
        FileError: The voxels cannot be read.
        GeometryError: The grid is sheared, which ITK cannot hold.
    """
    import SimpleITK

    if scan.geometry.shear_voxels > _MAX_SHEAR_VOXELS:
        raise GeometryError(
            scan.source,
            expected="axes at right angles, as ITK needs them",
            got=f"a grid that strays by {scan.geometry.shear_voxels:.2g} voxels",
            cure="Resample the scan to a regular grid first.",
        )
    voxels = scan.voxels()
    voxels = voxels.astype(np.uint8) if voxels.dtype == bool else voxels
    several = len(scan.channels) > 1
    # Channels last, (K, J, I, C), as SimpleITK takes them.
    array = voxels.transpose(3, 2, 1, 0) if several else voxels[0].transpose(2, 1, 0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array), isVector=several)
    origin, spacing, direction = scan.geometry.to_lps()
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    return image
