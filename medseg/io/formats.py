"""Which format is read and written by what: one table."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import FileError, LabelError
from medseg.core.labels import LabelSet
from medseg.core.results import Prediction
from medseg.core.scan import Scan
from medseg.io import exchange
from medseg.io.dicom_parts import is_dicom
from medseg.io.gipl import GIPL_SUFFIXES, looks_like_gipl, read_gipl
from medseg.io.image2d import IMAGE_SUFFIXES, looks_like_image, read_image, write_image_mask
from medseg.io.itk import ITK_SUFFIXES, looks_like_itk, read_itk, write_itk_mask
from medseg.io.mgh import MGH_SUFFIXES, looks_like_mgh, read_mgh
from medseg.io.nifti import NIFTI_SUFFIXES, looks_like_nifti, read_nifti
from medseg.io.nifti_mask import read_nifti_label_names, write_nifti_mask
from medseg.io.stream import BROKEN, read_head

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """One row of the table.

    Attributes:
        name: As people call it.
        suffixes: Of the files that are found in a folder.
        written: Suffixes that masks can be written to.
        known_by: Tells from the first bytes, decompressed, whether a file is of this format.
        read: Reads a scan.
        write: Writes a mask.
    """

    name: str
    suffixes: tuple[str, ...]
    written: tuple[str, ...]
    known_by: Callable[[bytes], bool]
    read: Callable[[Path], Scan]
    write: Callable[[Path, Prediction], None]


def _read_dicom(
    path: Path | Sequence[str | Path], *, series: str | None = None, accept_gaps: bool = False
) -> Scan:
    # It takes a while to load, and most scans are no DICOM.
    from medseg.io.dicom import read_dicom

    return read_dicom(path, series=series, accept_gaps=accept_gaps)


def _read_dicom_mask(
    path: Path, *, image: str | Path | None, labels: LabelSet | None
) -> tuple[NDArray[Any], Scan] | None:
    from medseg.io.dicom_masks import read_dicom_mask

    source: Path | Scan | None = None if image is None else Path(image)
    if isinstance(source, Path) and not is_dicom_source(source):
        source = read_scan(source)
    mask = read_dicom_mask(path, image=source, labels=labels)
    if mask is None:
        return None
    return mask.labels, Scan.from_array(mask.labels, mask.geometry, source=mask.source)


def _read_only(path: Path, prediction: Prediction) -> None:
    raise FileError(str(path), expected="a format that masks are written in", got=path.suffix)


def _looks_like_dicom(head: bytes) -> bool:
    return is_dicom(head) or head.startswith(b"PK\x03\x04")


FORMATS = (
    Format(
        "NIfTI", NIFTI_SUFFIXES, (".nii.gz", ".nii"), looks_like_nifti, read_nifti,
        write_nifti_mask,
    ),
    Format(
        "NRRD or MetaImage", ITK_SUFFIXES, (".nrrd", ".mha"), looks_like_itk, read_itk,
        write_itk_mask,
    ),
    Format(
        "PNG, TIFF or JPEG", IMAGE_SUFFIXES, (".png", ".tif", ".tiff"), looks_like_image,
        read_image, write_image_mask,
    ),
    Format("GIPL", GIPL_SUFFIXES, (), looks_like_gipl, read_gipl, _read_only),
    Format("MGH", MGH_SUFFIXES, (), looks_like_mgh, read_mgh, _read_only),
    # Last, since a file without a preamble has little to be known by; no suffixes, since
    # a folder of slices is one scan.
    Format("DICOM", (), (), _looks_like_dicom, _read_dicom, _read_only),
)  # fmt: skip
_DICOM = FORMATS[-1]

SCAN_SUFFIXES: tuple[str, ...] = tuple(
    sorted((suffix for row in FORMATS for suffix in row.suffixes), key=len, reverse=True)
)
# The voxels of a .hdr: no scan of their own in a folder, but a name that may be given.
_NAMED_SUFFIXES = (".img.gz", *SCAN_SUFFIXES, ".img", ".dcm.gz", ".dcm", ".zip")
# An NRRD or NIfTI header tells itself within this many bytes; so does DICOM ("DICM" at 128).
_HEAD_BYTES = 540


def read_scan(
    path: str | Path | Sequence[str | Path],
    *,
    series: str | None = None,
    accept_gaps: bool = False,
) -> exchange.Scan:
    """Read a scan: geometry from the header now, voxels (C, I, J, K) when asked for.

    The content decides which reader is used, whatever the name says.

    Args:
        path: A file; for DICOM also a folder, a zip, a DICOMDIR, or a list of files.
        series: Of several DICOM series the one to read: its number or UID, a pattern for
            its description, or ``"auto"``; None where only one is usable.
        accept_gaps: Interpolate where DICOM slices lie at uneven distances.

    Raises:
        FileError: The file is missing, truncated, or of no known format.
        GeometryError: Its header places the voxels nowhere, or slices have uneven gaps.
        InputError: Several DICOM series could be meant; they are named.
    """
    if not isinstance(path, str | Path):
        # Of what is read here, DICOM alone keeps one scan in several files.
        return exchange.Scan.of(_read_dicom(path, series=series, accept_gaps=accept_gaps))
    path = Path(path)
    row = _format_of(path)
    if row.read is _read_dicom:
        return exchange.Scan.of(_read_dicom(path, series=series, accept_gaps=accept_gaps))
    return exchange.Scan.of(row.read(path))


def is_dicom_source(path: str | Path) -> bool:
    """Whether a file is DICOM, a zip (of DICOM, it is hoped) or a DICOMDIR; no for others.

    Raises:
        FileError: The file is missing, or of no known format.
    """
    return _format_of(Path(path)).read is _read_dicom


def read_by_python(path: str | Path) -> bool:
    """Whether a file is parsed by Python alone, so that no crash in C++ can end the process.

    Raises:
        FileError: The file is missing, or of no known format.
    """
    return _format_of(Path(path)).read in (read_nifti, read_gipl, read_mgh)


def read_mask(
    path: str | Path, *, image: str | Path | None = None, labels: LabelSet | None = None
) -> tuple[NDArray[Any], Scan]:
    """Read a label image: its values (I, J, K), of an integer type, and the scan it comes as.

    Values stored as real numbers are taken where every one is a whole number. A DICOM
    segmentation or structure set comes on the grid of the series that it was drawn on.

    Args:
        path: A file; for DICOM also a folder or zip with one segmentation or structure set.
        image: The scan that a segmentation or structure set was drawn on; None looks for it
            beside the file. Of no account for other formats.
        labels: Which structures of a segmentation or structure set are wanted, by their
            names, and the values they get; None takes all. Of no account for other formats.

    Raises:
        FileError: The file is missing, truncated, of no known format, or has channels.
        GeometryError: Its header places the voxels nowhere, or not on its scan.
        InputError: A folder or zip holds several segmentations or structure sets.
        LabelError: A value is negative, not whole, or too large.
    """
    path = Path(path)
    row = _format_of(path)
    if row.read is _read_dicom:
        found = _read_dicom_mask(path, image=image, labels=labels)
        if found is not None:
            return found
    scan = read_image(path, palette_as_values=True) if row.read is read_image else row.read(path)
    if len(scan.channels) != 1:
        raise FileError(
            scan.source,
            expected="a mask of one channel",
            got=f"{len(scan.channels)} channels",
            cure="Save one label value per voxel, not colours or one-hot channels.",
        )
    return _label_values(scan.voxels()[0], scan.source), scan


def write_mask(path: str | Path, prediction: Prediction) -> None:
    """Write a mask in the format that the suffix names, whole or not at all.

    ``.nii.gz`` and ``.nii`` repeat the scan's placement fields bit for bit and hold label
    names and colours; ``.nrrd``, ``.mha``, and pictures for 2D are for exchange.

    Raises:
        FileError: No format for masks has this suffix.
        OutputError: The file cannot be written.
    """
    path = Path(path)
    for row in FORMATS:
        if path.name.lower().endswith(row.written):
            row.write(path, prediction)
            return
    known = ", ".join(suffix for row in FORMATS for suffix in row.written)
    raise FileError(str(path), expected=f"a mask named {known}", got=f"'{path.name}'")


def read_label_names(path: str | Path) -> LabelSet | None:
    """Read the label names and colours that a mask file holds; None when it holds none.

    Raises:
        FileError: The file is missing, damaged, or of no known format.
        InputError: A folder or zip holds several segmentations or structure sets.
        LabelError: A segmentation or structure set holds no structure.
    """
    path = Path(path)
    read = _format_of(path).read
    if read is _read_dicom:
        from medseg.io.dicom_masks import read_dicom_label_names

        return read_dicom_label_names(path)
    return read_nifti_label_names(path) if read is read_nifti else None


def case_name(path: str | Path) -> str:
    """The file's name without the suffix of its format: ``a/b.c.nii.gz`` gives ``b.c``."""
    name = Path(path).name
    for suffix in _NAMED_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def find_scans(folder: str | Path) -> list[Path]:
    """All scans in a folder and below, by their suffix, sorted.

    Hidden files and folders are left out, and so are links that lead out of the folder.
    """
    folder = Path(folder)
    home = folder.resolve()
    found, left_out = [], 0
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(root, name)
            if name.startswith(".") or not name.lower().endswith(SCAN_SUFFIXES):
                continue
            if path.resolve().is_relative_to(home):
                found.append(path)
            else:
                left_out += 1
    if left_out:
        _LOG.warning("%s: %d links that lead out of the folder are left out", folder, left_out)
    return sorted(found)


def _format_of(path: Path) -> Format:
    try:
        if path.is_dir():
            return _DICOM
        head = read_head(path, _HEAD_BYTES)
    except FileNotFoundError as error:
        raise FileError(str(path), expected="a scan", got="no such file") from error
    except BROKEN as error:
        raise FileError(
            str(path),
            expected="a whole file",
            got=str(error) or "one that cannot be opened",
            cure="Copy or export it again.",
        ) from error
    given = str(path).lower()
    if head and given.endswith((".img", ".img.gz")):
        return FORMATS[0]
    # First, since some DICOM files begin like TIFF or an Analyze header.
    if head[128:132] == b"DICM":
        return _DICOM
    for row in FORMATS:
        if row.known_by(head):
            return row
    raise _unknown(path, head)


def _unknown(path: Path, head: bytes) -> FileError:
    expected = ", ".join(row.name for row in FORMATS)
    if not head:
        return FileError(
            str(path), expected=expected, got="an empty file", cure="Copy or export it again."
        )
    return FileError(
        str(path),
        expected=expected,
        got="something else",
        cure="Check the file; convert it if it is a scan of another format.",
    )


def _label_values(values: NDArray[Any], source: str) -> NDArray[Any]:
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        values = _whole(values, source)
    if values.dtype.kind == "i" and values.size and int(values.min()) < 0:
        raise LabelError(
            source,
            expected="label values of 0 and more",
            got=str(int(values.min())),
            cure="Give this structure a positive value.",
        )
    return values


def _whole(values: NDArray[Any], source: str) -> NDArray[Any]:
    """Real numbers as integers, when that is what they are (to the last bits of a float32)."""
    whole = np.rint(values)
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(values - whole) <= 1e-6 * np.maximum(1.0, np.abs(whole)))
    wrong |= np.abs(whole) > np.iinfo(np.int32).max
    if wrong.any():
        raise LabelError(
            source,
            expected="whole numbers",
            got=f"the value {float(values[wrong][0]):g}",
            cure="Save the labels as integers; a mask must not be interpolated or scaled.",
        )
    labels: NDArray[np.int32] = whole.astype(np.int32)
    return labels
