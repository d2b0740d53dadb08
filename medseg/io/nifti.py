"""NIfTI-1 and NIfTI-2, single files and .hdr/.img pairs, compressed or not.

Geometry comes from the header alone; voxels are read when they are asked for, in the
file's own number type unless the header scales them. Reference: the NIfTI-1.1 header
(``nifti1.h``) and nibabel's reading of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import FileError, GeometryError
from medseg.core.geometry import Geometry, Triple
from medseg.core.scan import Scan
from medseg.io.nifti_header import (
    MAGIC_OFFSET,
    NiftiHeader,
    forms_of,
    header_size,
    mm_per_unit,
    parse_header,
)
from medseg.io.stream import BROKEN, check_promise, read_head, read_slabs, read_voxels

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

NIFTI_SUFFIXES = (".nii.gz", ".nii", ".hdr", ".hdr.gz")

_LOG = logging.getLogger(__name__)
# qform and sform further apart than this, in voxels, are worth a word; float32 strays far less.
_FORMS_APART_VOXELS = 0.1


@dataclass(frozen=True)
class _Stored:
    """What a header says about its voxels."""

    header: NiftiHeader
    geometry: Geometry
    channels: int
    data_path: Path


def looks_like_nifti(head: bytes) -> bool:
    """Whether the first (decompressed) bytes, at least 348, are a NIfTI or Analyze header."""
    return header_size(head) is not None


def read_nifti(path: Path) -> Scan:
    """Read a NIfTI file: geometry now, voxels (C, I, J, K) later.

    2D becomes K = 1; a fourth dimension becomes channels, as does the fifth of a vector
    image (I, J, K, 1, C). A header in metres or microns is converted to mm.

    Raises:
        FileError: The file is truncated, no NIfTI, or of a type that is no scan (RGB, complex).
        GeometryError: The header places the voxels nowhere.
    """
    stored = _inspect(path)
    return Scan(
        stored.geometry,
        tuple(str(number) for number in range(stored.channels)),
        lambda: _load(path, stored),
        source=str(path),
        forms=stored.header.forms,
        load_slabs=lambda cuts: _load_slabs(path, stored, cuts),
    )


def scan_from_nibabel(image: SpatialImage) -> Scan:
    """Take a nibabel image as a scan; a NIfTI header's placement goes along.

    Raises:
        FileError: Its voxels are no scan (RGB, complex, more than four dimensions).
        GeometryError: Its affine places the voxels nowhere.
    """
    import nibabel as nib

    source = image.get_filename() or "nibabel image"
    shape = tuple(int(size) for size in image.shape)
    header = image.header
    forms, scale = None, 1.0
    affine = image.affine
    if isinstance(header, nib.Nifti1Header):
        forms = forms_of(header, shape)
        scale = mm_per_unit(header)
        affine = header.get_best_affine() if affine is None else affine
    grid, channels = _layout(shape, str(source))
    _check_type(header.get_data_dtype(), str(source))
    affine = np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64)
    return Scan(
        _geometry(grid, affine, scale, str(source)),
        tuple(str(number) for number in range(channels)),
        lambda: _channels_first(_from_dataobj(image, str(source)), grid, channels),
        source=str(source),
        forms=forms,
    )


def _inspect(path: Path) -> _Stored:
    block = read_header_block(path)
    data_path = _data_path(path, block)
    try:
        header = parse_header(block, str(path))
    except BROKEN as error:
        raise unreadable(path, error) from error
    grid, channels = _layout(header.shape, str(path))
    _check_type(header.dtype, str(path))
    check_promise(data_path, header.offset + math.prod(header.shape) * header.dtype.itemsize)
    geometry = _geometry(grid, header.affine, header.mm_per_unit, str(path))
    _compare_forms(header, geometry, str(path))
    return _Stored(header, geometry, channels, data_path)


def read_header_block(path: Path) -> bytes:
    """The 348 or 540 bytes of the header as stored, nothing repaired.

    Raises:
        FileError: The file is not there, or no NIfTI.
    """
    path = _header_path(path)
    try:
        head = read_head(path, max(MAGIC_OFFSET))
    except BROKEN as error:
        raise unreadable(path, error) from error
    size = header_size(head)
    if size is None or len(head) < size:
        raise FileError(
            str(path),
            expected="a NIfTI header",
            got=f"{len(head)} bytes that are none",
            cure="Copy or export the file again.",
        )
    if _magic(head[:size])[:2] not in (b"n+", b"ni"):
        raise FileError(
            str(path),
            expected="NIfTI",
            got="Analyze 7.5, which does not say how the patient lies",
            cure="Convert the original images to NIfTI.",
        )
    return head[:size]


def _magic(block: bytes) -> bytes:
    offset = MAGIC_OFFSET[len(block)]
    return block[offset : offset + 4]


def _header_path(path: Path) -> Path:
    name = path.name
    for data, header in ((".img.gz", ".hdr.gz"), (".img.gz", ".hdr"), (".img", ".hdr")):
        if name.lower().endswith(data):
            beside = path.with_name(name[: -len(data)] + header)
            if beside.exists():
                return beside
    return path


def _data_path(path: Path, block: bytes) -> Path:
    """The file that holds the voxels: the same, or the .img beside a .hdr."""
    path = _header_path(path)
    if _magic(block)[:2] == b"n+":
        return path
    stem = path.name[: path.name.lower().rindex(".hdr")] if ".hdr" in path.name.lower() else None
    for suffix in (".img", ".img.gz", ".IMG"):
        if stem is not None and path.with_name(stem + suffix).is_file():
            return path.with_name(stem + suffix)
    raise FileError(
        str(path),
        expected=f"its voxels in {stem or path.stem}.img beside it",
        got="no such file",
        cure="Copy both files of the pair into one folder.",
    )


def _layout(shape: tuple[int, ...], source: str) -> tuple[Triple, int]:
    """Split a stored shape into the grid (I, J, K) and the number of channels."""
    full = (*shape, 1, 1)
    extra = [size for size in full[3:] if size != 1]
    if len(shape) < 2 or min(shape) < 1 or len(extra) > 1:
        raise FileError(
            source,
            expected="2D, 3D, or 3D with channels",
            got=f"shape {shape}",
            cure="Save one time point or one channel set to a file.",
        )
    return (full[0], full[1], full[2]), extra[0] if extra else 1


def _check_type(dtype: np.dtype[Any], source: str) -> None:
    if dtype.kind in "biuf":
        return
    colour = dtype.names is not None
    raise FileError(
        source,
        expected="whole or real numbers",
        got="red-green-blue voxels" if colour else f"voxels of type {dtype}",
        cure="Save the grey values, or each colour as a channel of a 4D file."
        if colour
        else "Save the magnitude.",
    )


def _geometry(grid: Triple, affine: NDArray[np.float64], mm: float, source: str) -> Geometry:
    affine = np.array(affine, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # Geometry refuses what is not finite
        affine[:3] *= mm
        if grid[2] == 1 and not affine[:3, 2].any():
            # 2D files often leave the third axis empty: 1 mm at right angles to the picture.
            normal = np.cross(affine[:3, 0], affine[:3, 1])
            length = np.linalg.norm(normal)
            affine[:3, 2] = normal / length if length else 0.0
    try:
        return Geometry(grid, affine)
    except GeometryError as error:
        raise GeometryError(
            f"{source}: {error.what}", expected=error.expected, got=error.got, cure=error.cure
        ) from error


def _compare_forms(header: NiftiHeader, geometry: Geometry, source: str) -> None:
    """Say so where qform and sform put the voxels into two places; the sform is used."""
    if header.qform is None:
        return
    apart = np.abs(header.qform - header.affine)[:3] * header.mm_per_unit
    farthest = apart @ np.array([*geometry.shape, 1.0])
    if (farthest <= 0.5 * _FORMS_APART_VOXELS * min(geometry.spacing_mm)).all():
        return
    try:
        other = _geometry(geometry.shape, header.qform, header.mm_per_unit, source)
    except GeometryError:
        _LOG.warning("%s: the qform places the voxels nowhere; the sform is used", source)
        return
    shift_mm = _shift_mm(geometry, other)
    if shift_mm > _FORMS_APART_VOXELS * min(geometry.spacing_mm):
        _LOG.warning(
            "%s: qform and sform disagree by up to %.3g mm and %.3g degrees; the sform is used",
            source,
            shift_mm,
            _turn_degrees(geometry, other),
        )


def _shift_mm(one: Geometry, other: Geometry) -> float:
    """How far two affines on one grid carry a corner apart."""
    far = np.asarray(one.shape, dtype=np.float64) - 1
    corners = np.array([[*(far * bits), 1.0] for bits in np.ndindex(2, 2, 2)])
    shift = (corners @ (one.affine_ras - other.affine_ras).T)[:, :3]
    return float(np.linalg.norm(shift, axis=1).max())


def _turn_degrees(one: Geometry, other: Geometry) -> float:
    """The angle between the rotations nearest to both affines (polar decomposition).

    A grid and its mirror image are 180 degrees apart.
    """
    turns = []
    for geometry in (one, other):
        u, _, v = np.linalg.svd(geometry.affine_ras[:3, :3] / np.asarray(geometry.spacing_mm))
        turns.append(u @ v)
    turn = turns[0] @ turns[1].T
    cosine = (np.trace(turn) - 1.0) / 2.0 if np.linalg.det(turn) > 0 else -1.0
    return float(np.rad2deg(np.arccos(np.clip(cosine, -1.0, 1.0))))


def _load(path: Path, stored: _Stored) -> NDArray[Any]:
    header = stored.header
    try:
        array = read_voxels(
            stored.data_path, offset=header.offset, shape=header.shape, dtype=header.dtype
        )
        array = _scaled(array, *header.scaling)
    except BROKEN as error:
        raise unreadable(path, error) from error
    return _channels_first(array, stored.geometry.shape, stored.channels)


def _load_slabs(
    path: Path, stored: _Stored, cuts: Sequence[tuple[int, int]]
) -> Iterator[NDArray[Any]]:
    header = stored.header
    shape = (*stored.geometry.shape, stored.channels)
    try:
        for slab in read_slabs(
            stored.data_path, cuts, offset=header.offset, shape=shape, dtype=header.dtype
        ):
            yield np.moveaxis(_scaled(slab, *header.scaling), -1, 0)
    except BROKEN as error:
        raise unreadable(path, error) from error


def _from_dataobj(image: SpatialImage, source: str) -> NDArray[Any]:
    """Voxels of a nibabel image, from its file or from memory, without float64 in between."""
    dataobj = image.dataobj
    try:
        if not hasattr(dataobj, "get_unscaled"):
            return np.asanyarray(dataobj)
        return _scaled(np.asanyarray(dataobj.get_unscaled()), dataobj.slope, dataobj.inter)
    except BROKEN as error:
        raise unreadable(Path(source), error) from error


def _scaled(array: NDArray[Any], slope: float | None, inter: float | None) -> NDArray[Any]:
    """Apply a header's scaling in float32 or wider; whole numbers stay where there is none."""
    native: NDArray[Any] = array.astype(array.dtype.newbyteorder("="), copy=False)
    slope, inter = 1.0 if slope is None else slope, 0.0 if inter is None else inter
    if (slope, inter) == (1.0, 0.0):
        return native
    # float32 holds all 16-bit numbers; nibabel's own scaling would double the memory.
    real = np.result_type(native.dtype, np.float32)
    scaled = native.astype(real)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite voxels are refused by their user
        scaled *= real.type(slope)
        scaled += real.type(inter)
    return scaled


def _channels_first(array: NDArray[Any], grid: Triple, channels: int) -> NDArray[Any]:
    return np.moveaxis(array.reshape((*grid, channels), order="F"), -1, 0)


def unreadable(path: Path, error: Exception) -> FileError:
    if isinstance(error, FileNotFoundError):
        return FileError(str(path), expected="a scan", got="no such file")
    reason = str(error) or type(error).__name__
    return FileError(
        str(path), expected="a whole NIfTI file", got=reason, cure="Copy or export it again."
    )
