"""GIPL (Guys Image Processing Laboratory), as ITK-SNAP writes it: read alone.

A big-endian header of 256 bytes, then the voxels, the first axis fastest; often gzipped. It
holds no direction: the axes run along LPS, as ITK takes it. Its line of text (it may name a
patient) and its calibration are left alone, as ITK leaves them.
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

GIPL_SUFFIXES = (".gipl.gz", ".gipl")

_HEADER_BYTES = 256
_MAGIC = (0xEFFFE9B0, 0x2AE389B8)
_TYPES = {
    7: ">i1", 8: ">u1", 15: ">i2", 16: ">u2", 31: ">u4", 32: ">i4", 64: ">f4", 65: ">f8",
}  # fmt: skip


def looks_like_gipl(head: bytes) -> bool:
    """Whether the first (decompressed) bytes, at least 256, are a GIPL header."""
    return len(head) >= _HEADER_BYTES and struct.unpack(">I", head[252:256])[0] in _MAGIC


def read_gipl(path: Path) -> Scan:
    """Read a GIPL file: geometry now, voxels (C, I, J, K) later; a fourth axis is channels.

    Raises:
        FileError: The file is truncated, no GIPL, or of a type that is no scan (complex).
        GeometryError: The header places the voxels nowhere.
    """
    try:
        with open_maybe_gzip(path) as stream:
            head = stream.read(_HEADER_BYTES)
    except BROKEN as error:
        raise _unreadable(path, error) from error
    if not looks_like_gipl(head):
        raise _unreadable(path, EOFError("no GIPL header"))
    sizes = [max(1, size) for size in struct.unpack(">4H", head[:8])]
    shape, channels = (sizes[0], sizes[1], sizes[2]), sizes[3]
    code, *spacing_mm = struct.unpack(">H3f", head[8:22])
    origin_mm = struct.unpack(">3d", head[204:228])
    if code not in _TYPES:
        raise FileError(
            str(path),
            expected="whole or real numbers",
            got=f"GIPL voxels of type {code}",
            cure="Save the voxels as short or float.",
        )
    dtype = np.dtype(_TYPES[code])
    check_promise(path, _HEADER_BYTES + math.prod(sizes) * dtype.itemsize)
    try:
        geometry = Geometry.from_lps(shape, origin_mm, tuple(spacing_mm), tuple(np.eye(3).ravel()))
    except GeometryError as error:
        raise GeometryError(
            f"{path}: {error.what}", expected=error.expected, got=error.got, cure=error.cure
        ) from error

    def load() -> NDArray[Any]:
        try:
            array = read_voxels(path, offset=_HEADER_BYTES, shape=tuple(sizes), dtype=dtype)
        except BROKEN as error:
            raise _unreadable(path, error) from error
        return np.moveaxis(array.astype(dtype.newbyteorder("="), copy=False), -1, 0)

    def load_slabs(cuts: Sequence[tuple[int, int]]) -> Iterator[NDArray[Any]]:
        stored = (*shape, channels)
        try:
            for slab in read_slabs(path, cuts, offset=_HEADER_BYTES, shape=stored, dtype=dtype):
                yield np.moveaxis(slab.astype(dtype.newbyteorder("="), copy=False), -1, 0)
        except BROKEN as error:
            raise _unreadable(path, error) from error

    names = tuple(str(number) for number in range(channels))
    return Scan(geometry, names, load, source=str(path), load_slabs=load_slabs)


def _unreadable(path: Path, error: Exception) -> FileError:
    if isinstance(error, FileNotFoundError):
        return FileError(str(path), expected="a scan", got="no such file")
    return FileError(
        str(path),
        expected="a whole GIPL file",
        got=str(error) or type(error).__name__,
        cure="Copy or export it again.",
    )
