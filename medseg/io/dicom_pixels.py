"""Pixels of DICOM slices into one volume, by several threads, each straight to its place."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from medseg.core.errors import FileError
from medseg.io.dicom_records import PixelLayout, Slice

_NATIVE = (
    "", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
)  # fmt: skip
_RLE = "1.2.840.10008.1.2.5"
_COMPRESSED = (
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.5",
)  # fmt: skip
# SOF0 to SOF15 but for DHT, JPG and DAC, which lie between; SOF55 is JPEG-LS.
_FRAME_MARKERS = {*range(0xFFC0, 0xFFD0), 0xFFF7} - {0xFFC4, 0xFFC8, 0xFFCC}
_MOST_THREADS = 8
_TYPES = (np.uint8, np.int16, np.uint16, np.int32, np.uint32)
# No codec here makes more than this from one byte of a scan; RLE makes 64 (PS3.5 G).
_MOST_EXPANSION = 5_000


def faults_of_pixels(layout: PixelLayout, size: int) -> list[str]:
    """Why the pixels of a file cannot be used; empty when they can.

    Args:
        layout: What the header says.
        size: Bytes of the file; -1 unknown.
    """
    faults = []
    if layout.samples != 1 or layout.photometric.startswith(("RGB", "YBR", "PALETTE")):
        faults.append("colour pixels")
    elif not layout.real and (layout.allocated not in (8, 16, 32) or not _stored_fits(layout)):
        return [f"pixels of {layout.stored} in {layout.allocated} bits"]
    if layout.length >= 0 and layout.syntax in _NATIVE:
        needed = _frame_bytes(layout) * layout.frames
        there = layout.length if size < 0 else min(layout.length, max(0, size - layout.offset))
        if there < needed:
            faults.append(f"pixels cut off ({there} of {needed} bytes)")
    elif layout.syntax not in _COMPRESSED or layout.length >= 0:
        faults.append(f"a transfer syntax that is not read ({UID(layout.syntax).name})")
    elif size >= 0 and _frame_bytes(layout) * layout.frames > _MOST_EXPANSION * max(1, size):
        faults.append(f"{layout.frames} images promised by {size} bytes")
    return faults


def read_voxels(slices: Sequence[Slice], *, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
    """Read slices into one array, rescaled to real values.

    Args:
        slices: All of one size, in the order wanted.
        dtype: From :func:`type_of` all slices of a volume, where these are a part of it.

    Returns:
        (K, J, I); integers where slopes are 1 and intercepts whole, else float32.

    Raises:
        FileError: Pixels are cut off, or cannot be decoded.
    """
    rows, columns = slices[0].shape
    volume = np.empty((len(slices), rows, columns), dtype=dtype or type_of(slices))
    files: dict[tuple[object, int], list[int]] = {}
    for number, piece in enumerate(slices):
        files.setdefault((piece.part.path, piece.part.start), []).append(number)

    def fill(numbers: list[int]) -> None:
        parts = [slices[number] for number in numbers]
        for number, stored in zip(numbers, _stored(parts), strict=True):
            _rescale(stored, slices[number], volume[number])

    threads = min(_MOST_THREADS, max(2, os.cpu_count() or 2), len(files))
    if threads == 1:
        fill(list(range(len(slices))))
        return volume
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for _ in pool.map(fill, files.values()):
            pass
    return volume


def _stored_fits(layout: PixelLayout) -> bool:
    return 1 <= layout.stored <= layout.allocated


def _frame_bytes(layout: PixelLayout) -> int:
    bits = {"f4": 32, "f8": 64}.get(layout.real, layout.allocated)
    return layout.rows * layout.columns * max(1, layout.samples) * max(1, bits // 8)


def type_of(slices: Sequence[Slice]) -> np.dtype[Any]:
    """The smallest type that holds every real value that the slices can have."""
    whole = all(piece.slope == 1.0 and piece.intercept.is_integer() for piece in slices)
    if not whole or any(piece.layout.real for piece in slices):
        return np.dtype(np.float32)
    lowest, highest = 0, 0
    for piece in slices:
        low, high = _range_of(piece.layout)
        lowest = min(lowest, low + int(piece.intercept))
        highest = max(highest, high + int(piece.intercept))
    for kind in _TYPES:
        limits = np.iinfo(kind)
        if limits.min <= lowest and highest <= limits.max:
            return np.dtype(kind)
    return np.dtype(np.float32)


def _range_of(layout: PixelLayout) -> tuple[int, int]:
    if layout.signed:
        return -(1 << layout.stored - 1), (1 << layout.stored - 1) - 1
    return 0, (1 << layout.stored) - 1


def _stored(slices: Sequence[Slice]) -> Iterator[NDArray[Any]]:
    """Stored values (J, I) of slices of one file."""
    part, layout = slices[0].part, slices[0].layout
    try:
        frames = _native(slices) if layout.syntax in _NATIVE else _decoded(slices)
        yield from frames
    except (FileError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything on damaged data
        reason = str(error) if isinstance(error, OSError | EOFError | zlib.error) else ""
        raise FileError(
            f"{part.path}" if part.path.name == part.name else f"{part.path} ({part.name})",
            expected="pixels that can be decoded",
            got=reason or type(error).__name__,
            cure="Export the series again, or without compression.",
        ) from error


def _native(slices: Sequence[Slice]) -> Iterator[NDArray[Any]]:
    part, layout = slices[0].part, slices[0].layout
    size = _frame_bytes(layout)
    kind = np.dtype(layout.real or f"{'i' if layout.signed else 'u'}{layout.allocated // 8}")
    kind = kind.newbyteorder(">" if layout.big_endian else "<")
    # What must be inflated or checked is read once, not for each frame.
    whole = part.read()[layout.offset :] if part.method or part.crc >= 0 else None
    for piece in slices:
        at = piece.frame * size
        raw = part.read(layout.offset + at, size) if whole is None else whole[at : at + size]
        if len(raw) < size:
            raise EOFError(f"{len(raw)} bytes of pixels instead of {size}")
        frame = np.frombuffer(raw, dtype=kind).reshape(layout.rows, layout.columns)
        yield _unused_bits_off(frame if piece.tile is None else _tile(frame, piece), layout)


def _unused_bits_off(frame: NDArray[Any], layout: PixelLayout) -> NDArray[Any]:
    """Clear the bits above the stored ones: old overlays hide there (PS3.5 8.1.1)."""
    spare = layout.allocated - layout.stored
    if layout.real or not spare:
        return frame
    native = frame.astype(frame.dtype.newbyteorder("="))
    if layout.signed:
        native <<= spare
        native >>= spare
    else:
        native &= (1 << layout.stored) - 1
    return native


def _decoded(slices: Sequence[Slice]) -> Iterator[NDArray[Any]]:
    part, layout = slices[0].part, slices[0].layout
    decoder = get_decoder(UID(layout.syntax))
    encapsulated = part.read()[layout.offset :]
    _refuse_other_size(encapsulated, layout)
    options: dict[str, Any] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "samples_per_pixel": 1,
        "photometric_interpretation": layout.photometric or "MONOCHROME2",
        "bits_allocated": layout.allocated,
        "bits_stored": layout.stored,
        "pixel_representation": int(layout.signed),
        "number_of_frames": layout.frames,
        "pixel_keyword": "PixelData",
        # One decoder for each syntax, whatever else is installed.
        "decoding_plugin": "pydicom" if layout.syntax == _RLE else "gdcm",
    }
    cache: tuple[int, NDArray[Any]] | None = None
    for piece in slices:
        if cache is None or cache[0] != piece.frame:
            frame, _ = decoder.as_array(encapsulated, index=piece.frame, raw=True, **options)
            cache = piece.frame, frame
        yield cache[1] if piece.tile is None else _tile(cache[1], piece)


def _refuse_other_size(encapsulated: bytes, layout: PixelLayout) -> None:
    """Compare the size in each compressed picture with the header, before a codec sees it."""
    if layout.syntax == _RLE:
        return  # has no size of its own; its decoder checks the length of what comes out
    for frame in generate_frames(encapsulated, number_of_frames=layout.frames):
        size = size_of_picture(frame)
        if size != (layout.rows, layout.columns):
            raise EOFError(
                f"a picture of {size} where the header says {layout.rows} rows and "
                f"{layout.columns} columns"
            )


def size_of_picture(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns as a JPEG, JPEG-LS or JPEG 2000 stream states them; None without.

    JPEG: the frame header, any SOF marker (ITU-T T.81 B.2.2) or SOF55 of JPEG-LS. JPEG
    2000: the SIZ marker, extent less offset (ITU-T T.800 A.5.1).
    """
    if stream[:4] == b"\xff\x4f\xff\x51":
        if len(stream) < 24:
            return None
        width, height, left, top = struct.unpack_from(">4L", stream, 8)
        return height - top, width - left
    position = 2 if stream[:2] == b"\xff\xd8" else len(stream)
    while position + 9 <= len(stream):
        marker, length = struct.unpack_from(">HH", stream, position)
        if marker in _FRAME_MARKERS:
            rows, columns = struct.unpack_from(">HH", stream, position + 5)
            return rows, columns
        if marker == 0xFFFF:  # a fill byte
            position += 1
        elif marker < 0xFF00 or length < 2:
            return None
        else:
            position += 2 + length
    return None


def _tile(frame: NDArray[Any], piece: Slice) -> NDArray[Any]:
    top, left = piece.tile or (0, 0)
    return frame[top : top + piece.shape[0], left : left + piece.shape[1]]


def _rescale(stored: NDArray[Any], piece: Slice, target: NDArray[Any]) -> None:
    if target.dtype.kind == "f":
        np.multiply(stored, target.dtype.type(piece.slope), out=target, casting="unsafe")
        if piece.intercept:
            target += target.dtype.type(piece.intercept)
    elif piece.intercept:
        np.add(stored, int(piece.intercept), out=target, dtype=target.dtype, casting="unsafe")
    else:
        target[...] = stored
