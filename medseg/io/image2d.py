"""Pictures: PNG, TIFF and JPEG; a TIFF of several pages is a volume.

A picture becomes (C, I, J, 1): I runs along the columns (x, to the right of the picture),
J along the rows (y, downwards); grey is one channel, red-green-blue three. A picture
states no place in the patient. It gets 1 mm pixels, and columns that run to the patient's
Left and rows that run to the Posterior, as ITK reads pictures and as radiologists look at
slices. In RAS+ that is diag(-1, -1, 1): the picture's right is -x, its lower edge is -y. Pages
run along K to the Superior, 1 mm apart: resolution tags mean paper, not the patient.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from medseg.core.errors import FileError
from medseg.core.geometry import Geometry
from medseg.core.results import Prediction
from medseg.core.scan import Scan
from medseg.io.atomic import whole_file
from medseg.io.image_header import Pages, read_pages
from medseg.io.stream import check_memory, no_memory

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
PICTURE_AFFINE_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_MAGIC = (b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\xff\xd8\xff")
_SMALL_BYTES = 1 << 24
_CODECS = ("PNG", "TIFF", "JPEG")
_GREY = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# The warnings come as errors where the program's filters say so.
_BROKEN = (
    OSError, ValueError, SyntaxError, EOFError, OverflowError, TypeError, KeyError, IndexError,
    struct.error, zlib.error, UserWarning, Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)  # fmt: skip


def looks_like_image(head: bytes) -> bool:
    """Whether the first bytes are those of a PNG, TIFF or JPEG file."""
    return head.startswith(_MAGIC)


def read_image(path: Path, *, palette_as_values: bool = False) -> Scan:
    """Read a picture: size now, pixels (C, I, J, K) later; K counts the pages of a TIFF.

    Args:
        path: A PNG, TIFF or JPEG file.
        palette_as_values: Keep the numbers of a picture with a palette, as masks need it,
            instead of the colours that they stand for.

    Raises:
        FileError: The file is truncated or too large, has transparency, pages that differ, or
            other colours than grey and red-green-blue.
    """
    try:
        pages = read_pages(path)
        with Image.open(path, formats=_CODECS) as picture:
            mode, frames = picture.mode, getattr(picture, "n_frames", 1)
            clear = "A" in mode or "transparency" in picture.info
            same = picture.size == (pages.width, pages.height)
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    if clear and not (palette_as_values and mode == "P"):
        raise FileError(
            str(path),
            expected="grey or red-green-blue pixels",
            got="transparency (alpha)",
            cure="Save it without an alpha channel.",
        )
    if frames != pages.count or not same:
        raise FileError(
            str(path),
            expected=f"{pages.count} upright pages of {pages.width} x {pages.height} pixels",
            got=f"{frames} pages" + ("" if same else " of another size"),
            cure="Save a volume as NIfTI or TIFF, or each page as a file.",
        )
    if mode not in (*_GREY, "RGB", "P"):
        raise FileError(
            str(path),
            expected="grey or red-green-blue pixels",
            got=f"colours of type {mode}",
            cure="Save it as grey or RGB.",
        )
    channels = 1 if mode in _GREY or (mode == "P" and palette_as_values) else 3
    return Scan(
        Geometry((pages.width, pages.height, pages.count), PICTURE_AFFINE_RAS),
        ("0",) if channels == 1 else ("red", "green", "blue"),
        lambda: _pixels(path, pages, mode, colours=channels == 3),
        source=str(path),
    )


def write_image_mask(path: Path, prediction: Prediction) -> None:
    """Write the mask of a 2D scan as a picture of label values, whole or not at all.

    Raises:
        FileError: The mask is a volume.
        OutputError: The file cannot be written.
    """
    if prediction.labels.shape[2] != 1:
        raise FileError(
            str(path),
            expected="a 2D mask",
            got=f"shape {prediction.labels.shape}",
            cure="Write volumes as .nii.gz.",
        )
    pixels = np.ascontiguousarray(prediction.labels[:, :, 0].T)
    with whole_file(path) as temporary:
        Image.fromarray(pixels).save(temporary)


def _pixels(path: Path, pages: Pages, mode: str, *, colours: bool) -> NDArray[Any]:
    """(C, I, J, K), K in the order of the pages."""
    needed_bytes = pages.width * pages.height * pages.count * (3 if colours else 4)
    check_memory(str(path), 2 * needed_bytes)
    try:
        if read_pages(path) != pages:
            raise OSError("another size than before")
        with Image.open(path, formats=_CODECS) as picture:
            layers = [_page(picture, number, mode, colours) for number in range(pages.count)]
    except MemoryError as error:
        if needed_bytes < _SMALL_BYTES:  # what Pillow says of some damaged PNG files
            raise _unreadable(path, OSError("pixels that cannot be unpacked")) from error
        raise no_memory(str(path), 2 * needed_bytes) from error
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    return np.stack(layers, axis=-1)


def _page(picture: Image.Image, number: int, mode: str, colours: bool) -> NDArray[Any]:
    """One page as (C, I, J)."""
    if number:
        picture.seek(number)
    if picture.mode != mode:
        raise ValueError(f"pages of type {mode} and {picture.mode}")
    array = np.asarray(picture.convert("RGB") if colours else picture)
    array = array.astype(np.uint8) if array.dtype == bool else array
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    channels_last = array if array.ndim == 3 else array[..., None]
    return channels_last.transpose(2, 1, 0)


def _unreadable(path: Path, error: Exception) -> FileError:
    if isinstance(error, FileNotFoundError):
        return FileError(str(path), expected="a picture", got="no such file")
    got = "a damaged one" if isinstance(error, UnidentifiedImageError) else str(error)
    return FileError(
        str(path),
        expected="a whole PNG, TIFF or JPEG file",
        got=got,
        cure="Copy or export the file again.",
    )
