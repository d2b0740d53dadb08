"""Bytes of voxels in: gzip, promises that are checked, reading straight into arrays.

gzip runs on ISA-L (python-isal), which inflates several times faster than zlib and keeps the
format's checks: a cut or damaged file is an error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from medseg.core.errors import FileError, ResourceError

_LOG = logging.getLogger(__name__)
_ISAL_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stub errs
# What reading a damaged file may raise; every reader adds what its own parser raises.
BROKEN: tuple[type[Exception], ...] = (
    OSError, EOFError, zlib.error, _ISAL_ERROR, ValueError, struct.error, OverflowError,
)  # fmt: skip
# Deflate cannot shrink more than 1032 : 1, so a larger promise is false before memory is taken.
MAX_DEFLATE_RATIO = 1032
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 24
_HEAD_PACKED_BYTES = 4096
# Packed files up to this size are read and unpacked in one go.
_SMALL_FILE_BYTES = 1 << 22
# Behind the voxels a file may hold a little more (a footer); no more than this is unpacked.
_MAX_TAIL_BYTES = 1 << 26
# Less than this is asked of the system without a look at what is free.
_SMALL_BYTES = 1 << 26


def open_maybe_gzip(path: Path) -> BinaryIO:
    """Open for reading, decompressing when the content (not the name) is gzip."""
    if not is_gzip(path):
        return path.open("rb")
    packed: BinaryIO = igzip.open(path, "rb")  # type: ignore[no-untyped-call]
    return packed


def is_gzip(path: Path) -> bool:
    """Whether the content is gzip."""
    with path.open("rb") as stream:
        return stream.read(2) == _GZIP_MAGIC


def read_head(path: Path, count: int) -> bytes:
    """The first bytes of a file, unpacked where it is gzip; fewer where it is shorter.

    Raises:
        OSError, EOFError, zlib.error, isal_zlib.error: The file is cut or damaged (``BROKEN``).
    """
    with path.open("rb", buffering=0) as raw:
        start = raw.read(max(count, _HEAD_PACKED_BYTES))
    if start[:2] != _GZIP_MAGIC:
        return start[:count]
    with contextlib.suppress(*BROKEN):
        head: bytes = _inflate().decompress(start, count)
        if len(head) == count:
            return head
    # Shorter, longer packed than usual, or damaged: its reader tells.
    with open_maybe_gzip(path) as stream:
        return stream.read(count)


def _inflate() -> Any:
    return isal_zlib.decompressobj(16 + isal_zlib.MAX_WBITS)


def check_promise(path: Path, promised_bytes: int) -> None:
    """Refuse a header that promises more bytes than the file can hold, before memory is taken.

    Raises:
        FileError: The file, unpacked where it is gzip, cannot be that long.
    """
    held_bytes, packed = path.stat().st_size, is_gzip(path)
    if promised_bytes > held_bytes * (MAX_DEFLATE_RATIO if packed else 1):
        raise FileError(
            str(path),
            expected=f"{promised_bytes} bytes as the header says",
            got=f"{held_bytes} bytes" + (" compressed" if packed else ""),
            cure="Copy or export the file again.",
        )


def check_memory(source: str, needed_bytes: int) -> None:
    """Refuse voxels that do not fit into the memory that is free now.

    Raises:
        ResourceError: More is needed than there is.
    """
    if needed_bytes < _SMALL_BYTES:
        return
    # It takes a while to load, and most files are small.
    import psutil

    free_bytes = int(psutil.virtual_memory().available)
    if needed_bytes > free_bytes:
        raise no_memory(source, needed_bytes, free_bytes)


def no_memory(source: str, needed_bytes: int, free_bytes: int | None = None) -> ResourceError:
    """The error for voxels that do not fit into memory."""
    return ResourceError(
        f"{source}: its voxels",
        expected=f"{needed_bytes / 1e9:.3g} GB of free memory",
        got="less" if free_bytes is None else f"{free_bytes / 1e9:.3g} GB",
        cure="Crop or downsample the scan, or use a machine with more memory.",
    )


def read_voxels(
    path: Path, *, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Read the voxels of a file, packed or not, in Fortran order and the file's byte order.

    Raises:
        ResourceError: They do not fit into memory.
        OSError, EOFError, zlib.error, isal_zlib.error: The file is cut or damaged (``BROKEN``).
    """
    promised_bytes = int(np.prod([int(size) for size in shape], dtype=object)) * dtype.itemsize
    check_memory(str(path), promised_bytes)
    whole = _unpacked_at_once(path, offset + promised_bytes)
    if whole is not None:
        return np.ndarray(shape, dtype, whole, offset, order="F")
    try:
        array = np.empty(shape, dtype, order="F")
    except MemoryError as error:
        raise no_memory(str(path), promised_bytes) from error
    with open_maybe_gzip(path) as stream:
        stream.seek(offset)
        _fill(array, stream)
        _to_the_end(stream, path)
    return array


def read_slabs(
    path: Path,
    cuts: Sequence[tuple[int, int]],
    *,
    offset: int,
    shape: tuple[int, int, int, int],
    dtype: np.dtype[Any],
) -> Iterator[NDArray[Any]]:
    """Read some slices of a file after others, holding no more than these.

    A packed file is unpacked on the way, once where there is one channel.

    Args:
        path: Packed or not.
        cuts: (start, stop) along K, ascending.
        offset: Where voxels begin.
        shape: (I, J, K, C) as stored, the first axis fastest.
        dtype: With the file's byte order.

    Yields:
        (I, J, stop - start, C) in Fortran order and the file's byte order.

    Raises:
        ResourceError: They do not fit into memory.
        OSError, EOFError, zlib.error, isal_zlib.error: The file is cut or damaged (``BROKEN``).
    """
    across, down, count, channels = shape
    slice_bytes = across * down * dtype.itemsize
    with open_maybe_gzip(path) as stream:
        for start, stop in cuts:
            check_memory(str(path), slice_bytes * (stop - start) * channels)
            slab = np.empty((across, down, stop - start, channels), dtype, order="F")
            for channel in range(channels):
                stream.seek(offset + (channel * count + start) * slice_bytes)
                _fill(slab[..., channel], stream)
            if stop == count:
                _to_the_end(stream, path)
            yield slab


def _unpacked_at_once(path: Path, length: int) -> bytearray | None:
    """A small gzip file that holds just this many bytes; None for any other, sound or not."""
    if length > _SMALL_BYTES:
        return None
    with path.open("rb", buffering=0) as raw:
        # To ask for no more than there is saves taking, and giving back, memory for the rest.
        packed = raw.read(min(os.fstat(raw.fileno()).st_size + 1, _SMALL_FILE_BYTES))
    if packed[:2] != _GZIP_MAGIC or len(packed) == _SMALL_FILE_BYTES:
        return None
    inflate = _inflate()
    with contextlib.suppress(*BROKEN):
        whole = inflate.decompress(packed, length + 1)
        # The end of the stream is seen behind its checksum.
        if inflate.eof and not inflate.unused_data and len(whole) == length:
            return bytearray(whole)
    return None


def _fill(array: NDArray[Any], stream: BinaryIO) -> None:
    """Straight into the array: no second copy of a large scan in memory."""
    target = array.reshape(-1, order="F").view(np.uint8).data
    filled = 0
    while filled < len(target):
        count = stream.readinto(target[filled : filled + _CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"{filled} bytes of voxels instead of {len(target)}")
        filled += count


def _to_the_end(stream: BinaryIO, path: Path) -> None:
    """Read what is left, so that a damaged or cut gzip is found by its checksum."""
    left = _MAX_TAIL_BYTES
    while left > 0:
        count = len(stream.read(1 << 20))
        if not count:
            return
        left -= count
    _LOG.warning("%s: holds much more than its header says; its checksum is not verified", path)
