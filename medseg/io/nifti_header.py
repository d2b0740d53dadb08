"""What a NIfTI header says, as plain facts.

The usual header (NIfTI-1, little endian, nothing to repair, an sform) is read here, field by
field after ``nifti1.h``; any other one goes to nibabel, which knows what to repair and how.
Both ways give the same facts: a test reads many headers both ways. nibabel takes a quarter of
a second to load and a millisecond for each header, which counts where a dataset has thousands.
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medseg.core.scan import NiftiForms

if TYPE_CHECKING:
    import nibabel as nib

    Header: TypeAlias = nib.Nifti1Header

PLACEMENT_FIELDS = (
    "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip

_LOG = logging.getLogger("medseg.io.nifti")
_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}
_SINGLE, _PAIR = b"n+1\0", b"ni1\0"
# Size of the header, and where its magic word stands.
MAGIC_OFFSET = {348: 344, 540: 4}
_TYPES: dict[int, np.dtype[Any]] = {
    2: np.dtype("u1"), 4: np.dtype("<i2"), 8: np.dtype("<i4"), 16: np.dtype("<f4"),
    64: np.dtype("<f8"), 256: np.dtype("i1"), 512: np.dtype("<u2"), 768: np.dtype("<u4"),
    1024: np.dtype("<i8"), 1280: np.dtype("<u8"),
}  # fmt: skip
_CODES = range(6)
_BY_LAYOUT = struct.Struct("<i36x8h14x2h2x8f3f3xB128x2h6f12f16x4s")
# FreeSurfer's surface with 163842 corners hides behind this shape.
_FREESURFER_HIDES = (27307, 1, 6)
# As nibabel has it: a unit quaternion in float32 may miss its length by this.
_QUATERNION_SLACK = 3 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """A header whose small faults are repaired.

    Attributes:
        version: 1 or 2.
        order: ``"<"`` or ``">"``.
        single: Whether the voxels follow in the same file.
        shape: As stored.
        dtype: Of the voxels, with their byte order.
        offset: Where voxels begin in their file, in bytes.
        scaling: Slope and intercept; None where the header names none.
        affine: (4, 4) of the form that holds, in the header's own unit.
        mm_per_unit: Of the unit of length.
        qform: (4, 4) where both forms are stated, else None; NaN where it makes no sense.
        forms: The raw fields that place the voxels.
    """

    version: int
    order: str
    single: bool
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    scaling: tuple[float | None, float | None]
    affine: NDArray[np.float64]
    mm_per_unit: float
    qform: NDArray[np.float64] | None
    forms: NiftiForms


class _Named(logging.LoggerAdapter[logging.Logger]):
    """Puts the file in front of what nibabel says about its header."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, Any]:
        return f"{(self.extra or {}).get('source')}: {msg}", kwargs


def header_size(head: bytes) -> int | None:
    """348 or 540 where bytes begin like a NIfTI or Analyze header, else None."""
    for order in "<>":
        if len(head) >= 348 and struct.unpack(order + "i", head[:4])[0] in MAGIC_OFFSET:
            return int(struct.unpack(order + "i", head[:4])[0])
    return None


def parse_header(block: bytes, source: str) -> NiftiHeader:
    """The facts of a header of 348 or 540 bytes; what is repaired is logged.

    Args:
        block: With the magic word of NIfTI in its place.
        source: What to call the file in the log.

    Raises:
        ValueError, OverflowError: The header cannot be repaired.
    """
    return parse_plain(block) or parse_with_nibabel(block, source)


def parse_plain(block: bytes) -> NiftiHeader | None:
    """The facts of a usual header; None for one that nibabel must look at."""
    if len(block) != _BY_LAYOUT.size:
        return None
    fields = _BY_LAYOUT.unpack(block)
    size, dim, (datatype, bitpix) = fields[0], fields[1:9], fields[9:11]
    pixdim, (start, slope, inter), units = fields[11:19], fields[19:22], fields[22]
    qform_code, sform_code = fields[23:25]
    quatern, srows, magic = fields[25:31], fields[31:43], fields[43]
    dtype = _TYPES.get(datatype)
    sound = (
        size == len(block)
        and magic in (_SINGLE, _PAIR)
        and dtype is not None
        and bitpix == dtype.itemsize * 8
        and _shape_is_plain(dim)
        and _placing_is_plain(pixdim, qform_code, sform_code)
        and all(map(math.isfinite, (*pixdim, slope, inter, *quatern, *srows)))
        and _start_is_plain(start, single=magic == _SINGLE)
    )
    if not sound or dtype is None:
        return None
    shape = tuple(dim[1 : dim[0] + 1])
    values = (
        pixdim, (float(qform_code),), (float(sform_code),), *((value,) for value in quatern),
        srows[:4], srows[4:8], srows[8:], (float(units),),
    )  # fmt: skip
    return NiftiHeader(
        version=1,
        order="<",
        single=magic == _SINGLE,
        shape=shape,
        dtype=dtype,
        offset=int(start) or (352 if magic == _SINGLE else 0),
        scaling=(slope, inter) if slope else (None, None),
        affine=np.array([*srows, 0.0, 0.0, 0.0, 1.0]).reshape(4, 4),
        mm_per_unit=_MM_PER_UNIT.get(units & 7, 1.0),
        qform=_qform(pixdim, quatern) if qform_code > 0 else None,
        forms=NiftiForms(1, dict(zip(PLACEMENT_FIELDS, values, strict=True)), shape[:3]),
    )


def _shape_is_plain(dim: tuple[int, ...]) -> bool:
    sizes = dim[1 : dim[0] + 1]
    return 1 <= dim[0] <= 7 and min(sizes) >= 1 and sizes[:3] != _FREESURFER_HIDES


def _placing_is_plain(pixdim: tuple[float, ...], qform_code: int, sform_code: int) -> bool:
    return (
        pixdim[0] in (-1.0, 1.0)
        and min(pixdim[1:4]) > 0
        and qform_code in _CODES
        and sform_code in _CODES
        and sform_code > 0
    )


def _start_is_plain(start: float, *, single: bool) -> bool:
    # math.isfinite comes first: the remainder of infinity is an error.
    return math.isfinite(start) and (start == 0 or (start >= 352 * single and start % 16 == 0))


def _qform(pixdim: tuple[float, ...], quatern: tuple[float, ...]) -> NDArray[np.float64]:
    """The affine of a qform (``nifti1.h``, METHOD 2); NaN where it is no rotation."""
    b, c, d, *offset = quatern
    rest = 1.0 - (b * b + c * c + d * d)
    if rest < -_QUATERNION_SLACK:
        return np.full((4, 4), np.nan)
    a = math.sqrt(rest) if rest > _QUATERNION_SLACK else 0.0
    length = a * a + b * b + c * c + d * d
    s = 2.0 / length
    x, y, z = pixdim[1], pixdim[2], pixdim[3] * pixdim[0]
    return np.array(
        [
            [(1 - s * (c * c + d * d)) * x, s * (b * c - a * d) * y, s * (b * d + a * c) * z,
             offset[0]],
            [s * (b * c + a * d) * x, (1 - s * (b * b + d * d)) * y, s * (c * d - a * b) * z,
             offset[1]],
            [s * (b * d - a * c) * x, s * (c * d + a * b) * y, (1 - s * (b * b + c * c)) * z,
             offset[2]],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )  # fmt: skip


def parse_with_nibabel(block: bytes, source: str) -> NiftiHeader:
    """The facts of any header, by way of nibabel; see :func:`parse_header`."""
    import nibabel as nib

    kind = nib.Nifti1Header if len(block) == 348 else nib.Nifti2Header
    try:
        raw = kind(block, check=False)
        shape = tuple(int(size) for size in raw.get_data_shape())
        header = raw.copy()
        header.check_fix(logger=_Named(_LOG, {"source": source}), error_level=40)
        single = raw["magic"].item()[:2] == b"n+"
        offset = int(header["vox_offset"])
        with np.errstate(invalid="ignore"):  # Geometry refuses what is not finite, by name
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        return NiftiHeader(
            version=1 if len(block) == 348 else 2,
            order="<" if header.endianness == "<" else ">",
            single=single,
            shape=shape,
            dtype=header.get_data_dtype(),
            offset=offset or (int(header.single_vox_offset) if single else 0),
            scaling=header.get_slope_inter(),
            affine=affine,
            mm_per_unit=mm_per_unit(header),
            qform=_stated_qform(header),
            forms=forms_of(raw, shape),
        )
    except nib.spatialimages.HeaderDataError as error:
        raise ValueError(str(error)) from error


def _stated_qform(header: Header) -> NDArray[np.float64] | None:
    from nibabel.spatialimages import HeaderDataError

    if not (int(header["qform_code"]) > 0 and int(header["sform_code"]) > 0):
        return None
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return np.full((4, 4), np.nan)


def forms_of(header: Header, shape: tuple[int, ...]) -> NiftiForms:
    """The raw fields of a nibabel header that place the voxels."""
    fields = {
        name: tuple(float(value) for value in np.atleast_1d(header[name]))
        for name in PLACEMENT_FIELDS
    }
    version = 1 if int(header["sizeof_hdr"]) == 348 or header.sizeof_hdr == 348 else 2
    return NiftiForms(version, fields, tuple(int(size) for size in shape[:3]))


def mm_per_unit(header: Header) -> float:
    """Of the unit of length that a nibabel header names."""
    return _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
