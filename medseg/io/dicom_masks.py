"""Masks that DICOM holds: a segmentation or a structure set, on the grid of its source series."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from medseg.core.errors import FileError, InputError, MedsegError
from medseg.core.labels import LabelSet
from medseg.core.scan import Scan
from medseg.io.dicom import choose_series
from medseg.io.dicom_labels import LabelledMask, place_of
from medseg.io.dicom_parts import list_parts
from medseg.io.dicom_records import Instance
from medseg.io.dicom_seg import SEG_CLASSES, Segmentation, describe_seg, paint
from medseg.io.dicom_series import SeriesInfo, describe_series, read_headers, read_series
from medseg.io.rtstruct import RTSTRUCT_CLASS, StructureSet, describe_rtstruct, rasterise

_LOG = logging.getLogger(__name__)
_MASK_CLASSES = (*SEG_CLASSES, RTSTRUCT_CLASS)


def read_dicom_mask(
    path: Path, *, image: Path | Scan | None = None, labels: LabelSet | None = None
) -> LabelledMask | None:
    """Read the segmentation or structure set in a DICOM file, folder or zip as a label image.

    The series that it was drawn on is looked for by the reference in the file; a segmentation
    whose reference leads nowhere lies on the one series whose slices it fits.

    Args:
        path: The file; or a folder or zip that holds it, and the images beside it.
        image: Where the images are, or the scan itself; None looks beside the file: in its
            folder and the folders in it.
        labels: Structures wanted by their names, in painting order, with their values.

    Returns:
        The mask; None where ``path`` is DICOM of another kind.

    Raises:
        FileError: Something is damaged, or a structure set's images are not there.
        GeometryError: The mask does not lie on the images.
        InputError: There are several segmentations or structure sets.
        LabelError: There is no structure.
    """
    here = read_headers(path)
    found = _object_in(here, path)
    if found is None:
        return None
    described = _described(found)
    source = image if isinstance(image, Scan) else _source(described, path, here, image=image)
    if isinstance(described, Segmentation):
        return paint(described, source=source, labels=labels)
    if source is None:
        raise FileError(
            place_of(found.part),
            expected="the series that its contours were drawn on, beside it",
            got="no such series" if described.references else "no reference to any series",
            cure="Put the images into its folder, or name them in the column 'image'.",
        )
    return rasterise(described, source=source, labels=labels)


def read_dicom_label_names(path: Path) -> LabelSet | None:
    """Names, colours and values of the structures in a DICOM file, folder or zip.

    Returns:
        None where it is DICOM of another kind.

    Raises:
        FileError: It is missing or damaged.
        InputError: There are several segmentations or structure sets.
        LabelError: There is no structure.
    """
    found = _object_in(read_headers(path), path)
    return None if found is None else _described(found).label_set


def list_structures(path: Path) -> list[tuple[str, LabelSet | MedsegError]]:
    """Every segmentation and structure set in a DICOM file, folder or zip.

    Returns:
        The name of each file, and its structures or why they cannot be told.

    Raises:
        FileError: The source is missing or is not to be trusted.
    """
    found: list[tuple[str, LabelSet | MedsegError]] = []
    for instance in read_headers(path):
        if instance.sop_class not in _MASK_CLASSES:
            continue
        try:
            found.append((instance.part.name, _described(instance).label_set))
        except MedsegError as error:
            found.append((instance.part.name, error))
    return found


def find_dicom_masks(folder: Path) -> list[tuple[str, Path]]:
    """The segmentations and structure sets in a folder tree, each with a name for its case.

    The case is called by the path of the folder that holds all files of its study, as a
    prediction from that study is; where several share that folder, by the file's own path
    without its suffix.

    Returns:
        Names, and what :func:`read_dicom_mask` reads: the study's folder or the file.

    Raises:
        FileError: The folder is missing.
    """
    studies: dict[str, list[Instance]] = {}
    for instance in read_headers(folder):
        studies.setdefault(instance.study_uid or str(instance.part.path.parent), []).append(
            instance
        )
    homes: dict[Path, list[Instance]] = {}
    for files in studies.values():
        home = Path(os.path.commonpath([file.part.path.parent for file in files]))
        masks = [file for file in files if file.sop_class in _MASK_CLASSES]
        homes.setdefault(home, []).extend(masks)
    found: list[tuple[str, Path]] = []
    for home, masks in homes.items():
        if len(masks) == 1 and home != folder:
            found.append((home.relative_to(folder).as_posix(), home))
            continue
        for mask in masks:
            path = mask.part.path
            suffix = path.suffix if path.suffix.lower() in (".dcm", ".seg") else ""
            name = path.relative_to(folder).as_posix()
            found.append((name.removesuffix(suffix), path))
    return sorted(found)


def _described(found: Instance) -> Segmentation | StructureSet:
    return describe_rtstruct(found) if found.sop_class == RTSTRUCT_CLASS else describe_seg(found)


def _object_in(instances: Sequence[Instance], path: Path) -> Instance | None:
    found = [instance for instance in instances if instance.sop_class in _MASK_CLASSES]
    if len(found) > 1:
        names = ", ".join(instance.part.name for instance in found[:4])
        raise InputError(
            str(path),
            expected="one segmentation or structure set",
            got=f"{len(found)}: {names}",
            cure="Name the file itself.",
        )
    return found[0] if found else None


def _source(
    described: Segmentation | StructureSet,
    path: Path,
    here: Sequence[Instance],
    *,
    image: Path | None,
) -> Scan | None:
    """The scan that a mask was drawn on; None where it is not at hand."""
    if image is not None:
        series = _images(read_headers(image), image)
        matching = _referred(described, series)
        # The user says that it is the image, whatever the reference is.
        return read_series(matching[0] if matching else choose_series(series, None))
    series = _images(here if len(here) > 1 else _beside(path), path)
    matching = _referred(described, series)
    if not matching and isinstance(described, Segmentation):
        matching = _fitting(described, series)
    if matching:
        return read_series(matching[0])
    if isinstance(described, Segmentation):
        _LOG.warning(
            "%s: its source series is not beside it; it is read on its own grid",
            place_of(described.part),
        )
    return None


def _referred(
    described: Segmentation | StructureSet, series: Sequence[SeriesInfo]
) -> list[SeriesInfo]:
    """The series referred to, those without a fault first: one may hold several volumes."""
    found = [info for info in series if info.uid in described.references]
    return sorted(found, key=lambda info: bool(info.faults or info.gaps))


def _images(instances: Sequence[Instance], path: Path) -> list[SeriesInfo]:
    return describe_series([i for i in instances if i.sop_class not in _MASK_CLASSES], path)


def _beside(path: Path) -> list[Instance]:
    """Headers of the other files in a file's folder, and in the folders in that one."""
    if path.is_dir():
        return []
    home = path.resolve().parent
    folders = [home, *sorted(sub for sub in home.iterdir() if sub.is_dir())]
    found: list[Instance] = []
    for folder in folders:
        if folder.name.startswith("."):
            continue
        for other in sorted(folder.iterdir()):
            if other.is_file() and not other.name.startswith(".") and other != path.resolve():
                found += _headers_of(other)
    return found


def _headers_of(path: Path) -> list[Instance]:
    try:
        # A zip beside it is a study of its own.
        return [] if len(list_parts(path)) != 1 else read_headers(path)
    except MedsegError:
        return []


def _fitting(seg: Segmentation, series: Sequence[SeriesInfo]) -> list[SeriesInfo]:
    """Series on whose grid every frame lies; none where such series differ among themselves."""
    fitting = [
        info
        for info in series
        if not info.faults
        and info.stack.geometry is not None
        and info.stack.even
        and seg.lies_on(info.stack.geometry)
    ]
    grids = [info.stack.geometry for info in fitting if info.stack.geometry is not None]
    same = all(grids[0].difference(grid) is None for grid in grids[1:])
    return fitting if same else []
