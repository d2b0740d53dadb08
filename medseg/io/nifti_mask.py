"""Masks as NIfTI: the scan's placement repeated, label names and colours in the header."""

from __future__ import annotations

import io
import logging
import struct
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from medseg.core.labels import LabelSet
from medseg.core.results import Prediction
from medseg.core.scan import NiftiForms
from medseg.io.atomic import whole_file
from medseg.io.label_table import ECODE_CARET, from_caret_xml, to_caret_xml
from medseg.io.nifti import read_header_block, unreadable
from medseg.io.pack import fortran_bytes, write_gzip
from medseg.io.stream import BROKEN, read_head

if TYPE_CHECKING:
    import nibabel as nib

    from medseg.io.nifti_header import Header

    Image: TypeAlias = nib.Nifti1Image

# More than this before the voxels is no label table.
_MAX_EXTENSION_BYTES = 1 << 24
_LABEL_INTENT = 1002
# What nibabel repairs in a scan's header was said when the scan was read.
_QUIET = logging.getLogger(f"{__name__}.repair")
_QUIET.disabled = True


def to_nibabel(prediction: Prediction) -> Image:
    """Put a mask into a nibabel image: shape and placement exactly as the scan's.

    With the scan's NIfTI forms the placement fields are repeated (save for values that
    nibabel itself must repair to read them); without, qform and sform (code 1, scanner)
    are written from the geometry in mm.
    """
    import nibabel as nib

    forms, geometry = prediction.forms, prediction.geometry
    shape = geometry.shape if forms is None else forms.grid_shape
    header = _new_header(shape, forms)
    header.set_data_dtype(prediction.labels.dtype)
    header.set_data_shape(shape)
    if forms is None:
        header.set_xyzt_units("mm")
        header.set_qform(geometry.affine_ras, code=1)
        header.set_sform(geometry.affine_ras, code=1)
    else:
        _repeat(forms, header)
        header.check_fix(logger=_QUIET, error_level=40)
    header["cal_min"], header["cal_max"] = 0.0, float(max(prediction.label_set.values))
    header["intent_code"] = _LABEL_INTENT
    header["descrip"] = b"medseg"
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    # The header's own affine: given any other, nibabel would rewrite the forms.
    image = kind(prediction.labels.reshape(shape), header.get_best_affine(), header)
    content = to_caret_xml(prediction.label_set)
    image.header.extensions.append(nib.nifti1.Nifti1Extension(ECODE_CARET, content))
    return image


def write_nifti_mask(path: Path, prediction: Prediction) -> None:
    """Write a mask, whole or not at all; compressed when the name ends in ``.gz``.

    Raises:
        OutputError: The file cannot be written.
    """
    head = mask_head(prediction)
    with whole_file(path) as temporary, temporary.open("wb") as raw:
        if path.name.lower().endswith(".gz"):
            write_gzip(raw, head, prediction.labels)
        else:
            raw.write(head)
            raw.write(fortran_bytes(prediction.labels))


def _new_header(shape: tuple[int, ...], forms: NiftiForms | None) -> Header:
    import nibabel as nib

    version = 1 if forms is None else forms.version
    # NIfTI-1 counts voxels in 16 bits.
    large = max(shape) > np.iinfo(np.int16).max
    return nib.Nifti2Header() if version == 2 or large else nib.Nifti1Header()


def _repeat(forms: NiftiForms, header: Header) -> None:
    for name, values in forms.fields.items():
        header[name] = values if len(values) > 1 else values[0]


def mask_head(prediction: Prediction) -> bytes:
    """All that stands before a mask's voxels: header, raw placement fields, label table.

    Of the voxels themselves only shape and type are looked at.
    """
    return head_of(to_nibabel(prediction).header, prediction.forms)


def head_of(image_header: Header, forms: NiftiForms | None, *, slope: float = 1.0) -> bytes:
    """All that stands before the voxels of a file.

    Args:
        image_header: With its extensions.
        forms: Placement fields that are to be repeated raw.
        slope: What a stored number counts.
    """
    header = image_header.copy()
    if forms is not None:
        _repeat(forms, header)
    extensions = io.BytesIO()
    header.extensions.write_to(extensions, False)
    # Four bytes after the header say that extensions follow; voxels begin at a multiple of 16.
    padding = -(header.sizeof_hdr + 4) % 16
    header["vox_offset"] = header.sizeof_hdr + 4 + extensions.tell() + padding
    header["magic"] = header.single_magic
    header["scl_slope"], header["scl_inter"] = slope, 0.0
    return bytes(header.binaryblock) + b"\1\0\0\0" + extensions.getvalue() + bytes(padding)


def read_nifti_label_names(path: Path) -> LabelSet | None:
    """Read the label names and colours from a NIfTI mask's header; None when it has none.

    Raises:
        FileError: The file is not there, or no NIfTI.
    """
    header = read_header_block(path)
    start = len(header)
    order = "<" if header[:4] == struct.pack("<i", start) else ">"
    try:
        where, kind = (108, "f") if start == 348 else (168, "q")
        offset = struct.unpack_from(order + kind, header, where)[0]
        block = read_head(path, min(max(start, int(offset)), _MAX_EXTENSION_BYTES))[start:]
    except BROKEN as error:
        raise unreadable(path, error) from error
    for code, content in _extensions(block, order):
        if code == ECODE_CARET:
            return from_caret_xml(content)
    return None


def _extensions(block: bytes, order: str) -> list[tuple[int, bytes]]:
    """Split the bytes between header and voxels into (code, content)."""
    found = []
    position = 4
    while block[:1] not in (b"", b"\0") and position + 8 <= len(block):
        size, code = struct.unpack(f"{order}2i", block[position : position + 8])
        if size < 8 or position + size > len(block):
            break
        found.append((code, block[position + 8 : position + size]))
        position += size
    return found
