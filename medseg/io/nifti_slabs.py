"""Masks and maps (probabilities and the like) as NIfTI from slabs: for what is above memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from medseg.core.errors import InputError
from medseg.core.results import Prediction
from medseg.io.atomic import whole_file
from medseg.io.nifti_mask import head_of, mask_head, to_nibabel
from medseg.io.pack import fortran_bytes

_LEVEL = 2
_ESTIMATE_INTENT = 1001
# Deflate in a gzip wrapping, without a time in it: equal masks are equal files.
_GZIP_BITS = 16 + isal_zlib.MAX_WBITS


def write_nifti_mask_slabs(path: Path, frame: Prediction, slabs: Iterable[NDArray[Any]]) -> None:
    """Write a mask slab by slab, whole or not at all; compressed when the name ends in ``.gz``.

    Header, label table and voxels are those that ``nifti_mask.write_nifti_mask`` writes.

    Args:
        path: The file.
        frame: All of the mask but its voxels: of ``labels`` only shape and type are used
            (``numpy.broadcast_to`` makes such an array without memory).
        slabs: (I, J, depth) mask values in order along K, every plane once.

    Raises:
        InputError: The slabs are not those of the mask.
        OutputError: The file cannot be written.
    """
    _write(path, mask_head(frame), frame, slabs)


def write_nifti_map_slabs(
    path: Path, frame: Prediction, slabs: Iterable[NDArray[Any]], *, slope: float = 1.0
) -> None:
    """Write numbers from 0 to 1 on the grid of a mask, slab by slab, whole or not at all.

    Args:
        path: The file; compressed when the name ends in ``.gz``.
        frame: Placement, and in ``labels`` shape and type: uint8 or float32.
        slabs: (I, J, depth) of that type in order along K, every plane once.
        slope: What a stored number counts: 1 / 255 for 255 to mean 1.

    Raises:
        InputError: The slabs are not those of the frame.
        OutputError: The file cannot be written.
    """
    header = to_nibabel(frame).header
    header.extensions.clear()
    header["cal_max"], header["intent_code"] = 1.0, _ESTIMATE_INTENT
    _write(path, head_of(header, frame.forms, slope=slope), frame, slabs)


def _write(path: Path, head: bytes, frame: Prediction, slabs: Iterable[NDArray[Any]]) -> None:
    gzip = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _GZIP_BITS)
    packed = path.name.lower().endswith(".gz")
    with whole_file(path) as temporary, temporary.open("wb") as raw:
        for piece in _pieces(head, frame.labels, slabs):
            raw.write(gzip.compress(piece) if packed else piece)
        if packed:
            raw.write(gzip.flush())


def _pieces(
    head: bytes, frame: NDArray[Any], slabs: Iterable[NDArray[Any]]
) -> Iterator[bytes | memoryview]:
    """Bytes of the file in their order."""
    yield head
    planes = 0
    for slab in slabs:
        planes += slab.shape[2]
        _check(frame, slab.dtype, (*slab.shape[:2], planes), complete=False)
        yield fortran_bytes(slab)
    _check(frame, frame.dtype, (*frame.shape[:2], planes), complete=True)


def _check(
    frame: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...], *, complete: bool
) -> None:
    known = dtype == frame.dtype and shape[:2] == frame.shape[:2]
    if not known or shape[2] > frame.shape[2] or (complete and shape[2] < frame.shape[2]):
        raise InputError(
            "slabs of a mask",
            expected=f"{frame.dtype} {frame.shape}",
            got=f"{dtype} {shape}",
        )
