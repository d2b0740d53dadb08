"""Bytes of voxels out: Fortran order as NIfTI has it, and gzip on several cores.

The bytes are cut into pieces of one size. ISA-L (python-isal) deflates several at a time; in
their order they are one gzip member (RFC 1952) that every reader takes. Equal arrays give
equal files, whatever the number of threads.
"""

from __future__ import annotations

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

# ISA-L's own default; its level 3 takes many times as long and gains little on masks.
_LEVEL = 2
# Deflate, no name and no time inside; the system is "unknown", so that all write the same.
_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
_PIECE_BYTES = 1 << 22
_BLOCK_COLUMNS = 4
_MAX_THREADS = 4


def write_gzip(stream: BinaryIO, head: bytes, array: NDArray[Any]) -> None:
    """Write ``head``, then the voxels (I, J, K) in Fortran order, as one gzip member."""
    stream.write(_HEADER)
    check, length = 0, 0
    with ThreadPoolExecutor(max_workers=_threads()) as pool:
        body = fortran_bytes(array)
        starts = range(0, len(body), _PIECE_BYTES)
        pieces = [memoryview(head), *(body[start : start + _PIECE_BYTES] for start in starts)]
        for packed, piece_check, piece_length in pool.map(_pack, pieces):
            stream.write(packed)
            check = isal_zlib.crc32_combine(check, piece_check, piece_length)
            length += piece_length
    # The end mark of deflate (an empty last block), the checksum, the length modulo 2^32.
    stream.write(b"\x03\0" + struct.pack("<II", check, length & 0xFFFFFFFF))


def fortran_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of an array (I, J, K) in Fortran order: the first axis is the fastest.

    A view where the array lies so already. Else a turn by blocks that fit the cache, which
    moves eight bytes at a time and leaves out what is 0: several times as fast as
    ``ndarray.ravel``.
    """
    per_word = 8 // array.itemsize if array.itemsize in (1, 2, 4) else 0
    if array.flags.f_contiguous or array.ndim != 3 or not per_word:
        return np.ravel(array, order="F").data.cast("B")
    turned = np.zeros(array.shape[::-1], array.dtype)
    # Each thread takes the next block when it is done with one: less to hand out than a task a
    # block, and no thread waits for one whose core is busy.
    starts = iter(range(0, array.shape[1], _BLOCK_COLUMNS))

    def turn(_: int) -> None:
        for start in starts:
            _turn_block(array, turned, start)

    with ThreadPoolExecutor(max_workers=_threads()) as pool:
        list(pool.map(turn, range(_threads())))
    return turned.reshape(-1).data.cast("B")


def _turn_block(array: NDArray[Any], turned: NDArray[Any], start: int) -> None:
    """Turn a few columns of a mask: what lies between the first and the last that is not 0."""
    per_word = 8 // array.itemsize
    even = array.shape[2] // per_word * per_word
    block = slice(start, start + _BLOCK_COLUMNS)
    part = array[:, block]
    turned[even:, block] = part[:, :, even:].transpose(2, 1, 0)
    words = np.ascontiguousarray(part[:, :, :even]).view(np.uint64)
    rows = np.flatnonzero(words.any(axis=(1, 2)))
    if not rows.size:
        return
    first, last = int(rows[0]), int(rows[-1]) + 1
    slices = np.flatnonzero(words[first:last].any(axis=(0, 1)))
    low, high = int(slices[0]), int(slices[-1]) + 1
    values = np.ascontiguousarray(words[first:last, :, low:high].transpose(2, 1, 0))
    values = values.view(array.dtype).reshape(*values.shape, per_word)
    for place in range(per_word):
        turned[low * per_word + place : high * per_word : per_word, block, first:last] = values[
            ..., place
        ]


def _threads() -> int:
    return min(_MAX_THREADS, os.cpu_count() or 1)


def _pack(piece: memoryview) -> tuple[bytes, int, int]:
    """Deflate a piece up to a byte's edge, so that another can follow; its CRC-32 and length."""
    deflate = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, -isal_zlib.MAX_WBITS)
    packed = deflate.compress(piece) + deflate.flush(isal_zlib.Z_FULL_FLUSH)
    return packed, isal_zlib.crc32(piece), len(piece)
