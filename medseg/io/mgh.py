"""FreeSurfer's MGH and MGZ: read alone; nibabel parses the header.

Geometry: ``xras``, ``yras``, ``zras`` and the centre of the volume in scanner RAS, in mm, as
nibabel composes them. A header without them (``goodRASFlag`` 0) is refused: FreeSurfer then
takes the axes as LIA and nibabel as LSP, and nothing in the file tells who is right. Frames
become channels.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import FileError, GeometryError
from medseg.core.geometry import Geometry
from medseg.core.scan import Scan
from medseg.io.stream import BROKEN, check_promise, open_maybe_gzip, read_slabs, read_voxels

MGH_SUFFIXES = (".mgz", ".mgh")

_DATA_OFFSET = 284
_MAX_SIZE = 1 << 20
_TYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}


def looks_like_mgh(head: bytes) -> bool:
    """Whether the first (decompressed) bytes are those of an MGH header: version 1, sane sizes."""
    if len(head) < _DATA_OFFSET:
        return False
    version, *sizes, code = struct.unpack(">6i", head[:24])
    # Any file might begin with the number 1: the sizes, type and flag must make sense too.
    sane = min(sizes) >= 1 and max(sizes) <= _MAX_SIZE and 0 <= code <= 10
    return version == 1 and sane and head[28:30] in (b"\0\0", b"\0\1")


def read_mgh(path: Path) -> Scan:
    """Read an MGH or MGZ file: geometry now, voxels (C, I, J, K) later.

    Raises:
        FileError: The file is truncated, no MGH, or of a type that is no scan.
        GeometryError: The header places the voxels nowhere.
    """
    try:
        with open_maybe_gzip(path) as stream:
            head = stream.read(_DATA_OFFSET)
        if not looks_like_mgh(head):
            raise EOFError("no MGH header")
        code = struct.unpack(">i", head[20:24])[0]
        a, b, c, frames = struct.unpack(">4i", head[4:20])
        sizes = (int(a), int(b), int(c), int(frames))
    except BROKEN as error:
        raise _unreadable(path, error) from error
    if code not in _TYPES:
        raise FileError(
            str(path),
            expected="whole or real numbers",
            got=f"MGH voxels of type {code}",
            cure="Convert it with mri_convert to short or float.",
        )
    dtype = np.dtype(_TYPES[code])
    check_promise(path, _DATA_OFFSET + math.prod(sizes) * dtype.itemsize)

    def load() -> NDArray[Any]:
        try:
            array = read_voxels(path, offset=_DATA_OFFSET, shape=sizes, dtype=dtype)
        except BROKEN as error:
            raise _unreadable(path, error) from error
        return np.moveaxis(array.astype(dtype.newbyteorder("="), copy=False), -1, 0)

    def load_slabs(cuts: Sequence[tuple[int, int]]) -> Iterator[NDArray[Any]]:
        try:
            for slab in read_slabs(path, cuts, offset=_DATA_OFFSET, shape=sizes, dtype=dtype):
                yield np.moveaxis(slab.astype(dtype.newbyteorder("="), copy=False), -1, 0)
        except BROKEN as error:
            raise _unreadable(path, error) from error

    names = tuple(str(number) for number in range(sizes[3]))
    grid = _geometry(path, head, sizes)
    return Scan(grid, names, load, source=str(path), load_slabs=load_slabs)


def _geometry(path: Path, head: bytes, sizes: tuple[int, ...]) -> Geometry:
    if head[28:30] == b"\0\0":
        raise GeometryError(
            str(path),
            expected="a header that places the voxels",
            got="goodRASFlag 0",
            cure="Convert it with FreeSurfer's mri_convert, which states the place.",
        )
    import nibabel as nib

    try:
        with np.errstate(invalid="ignore", over="ignore"):  # Geometry refuses what is not finite
            header = nib.freesurfer.mghformat.MGHHeader(head, check=False)
            affine = np.asarray(header.get_affine(), dtype=np.float64)
        return Geometry((sizes[0], sizes[1], sizes[2]), affine)
    except GeometryError as error:
        raise GeometryError(
            f"{path}: {error.what}", expected=error.expected, got=error.got, cure=error.cure
        ) from error
    except (*BROKEN, nib.spatialimages.HeaderDataError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> FileError:
    if isinstance(error, FileNotFoundError):
        return FileError(str(path), expected="a scan", got="no such file")
    return FileError(
        str(path),
        expected="a whole MGH file",
        got=str(error) or type(error).__name__,
        cure="Copy or export it again.",
    )
