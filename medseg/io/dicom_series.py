"""The series of a DICOM source: found, described, and read as a scan.

A series is named in messages by its number, modality and description; of a patient nothing
is read, so nothing of one can be told.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import FileError, GeometryError
from medseg.core.geometry import FloatTriple, Triple
from medseg.core.scan import Scan
from medseg.io.dicom_geometry import Stack, bridged, doubled_places, gaps_text, places_of, stack
from medseg.io.dicom_header import listed_files, read_instance
from medseg.io.dicom_parts import Part, list_parts, listed_parts
from medseg.io.dicom_pixels import faults_of_pixels, read_voxels, type_of
from medseg.io.dicom_records import TRAITS, Instance, Slice

_LOG = logging.getLogger(__name__)

_SCANS = ("CT", "MR", "PT", "NM", "")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_LOCALISER = re.compile(r"\b(locali[sz]er|scout|survey|topogram|scanogram)\b", re.IGNORECASE)
_FEWEST_SLICES = 3


@dataclass(frozen=True)
class SeriesInfo:
    """One series, or one volume of a series that holds several.

    Attributes:
        id: What selects it: its number, with ``.1``, ``.2`` where several share one.
        source: The path in which it was found, as it was given.
        study_uid, uid: Of the study and the series.
        modality, description, kernel: As the scanner wrote them.
        slices: How many there are.
        shape, spacing_mm, axis_codes: Of the grid; None and "" where there is none.
        gaps: Distances between slices with their counts, where they are uneven; else "".
        tilt_degrees: Between the normal of the slices and the line on which they lie.
        original: Whether the scanner measured it, rather than somebody derived it.
        faults: Why it cannot be read.
        doubts: Why it is hardly the scan that is wanted, though it can be read.
    """

    id: str
    source: Path
    study_uid: str
    uid: str
    modality: str
    description: str
    slices: int
    shape: Triple | None
    spacing_mm: FloatTriple | None
    axis_codes: str
    gaps: str
    tilt_degrees: float
    original: bool
    faults: tuple[str, ...]
    doubts: tuple[str, ...]
    kernel: str = ""
    pixel_faults: tuple[str, ...] = field(default=(), repr=False)
    stack: Stack = field(default_factory=lambda: Stack(()), repr=False)

    @property
    def name(self) -> str:
        """How messages call it."""
        words = [self.modality or "?", self.description, f"{self.slices} slices"]
        return f"series {self.id} ({', '.join(word for word in words if word)})"

    @property
    def reasons_against(self) -> tuple[str, ...]:
        """All that speaks against it."""
        uneven = (f"uneven gaps ({self.gaps})",) if self.gaps else ()
        return (*self.faults, *uneven, *self.doubts)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its files, each once."""
        return tuple(dict.fromkeys(piece.part for piece in self.stack.slices))


def find_series(source: str | Path | Sequence[str | Path]) -> list[SeriesInfo]:
    """Find and describe every series in a file, a folder tree, a zip or by a DICOMDIR.

    Args:
        source: One of these, or a list of files.

    Raises:
        FileError: The source is missing, is not to be trusted, or holds no DICOM.
    """
    several = [Path(source)] if isinstance(source, str | Path) else [Path(p) for p in source]
    where = several[0] if len(several) == 1 else _common_folder(several)
    series = describe_series([i for one in several for i in read_headers(one)], where)
    if not series:
        raise FileError(
            str(where),
            expected="a scan, or DICOM images in it",
            got="none",
            cure="Name the scan files themselves.",
        )
    return series


def _common_folder(paths: Sequence[Path]) -> Path:
    try:
        return Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError:
        # None at all, or on two drives.
        return paths[0].parent if paths else Path("files")


def read_headers(source: Path) -> list[Instance]:
    """Read the header of every DICOM file of a source; damaged ones are told of and left out.

    Raises:
        FileError: The source is missing, is not to be trusted, or its only file is damaged.
    """
    parts = list_parts(source)
    if len(parts) == 1:
        names = listed_files(parts[0])
        if names is not None:
            parts = listed_parts(source, names)
    instances: list[Instance] = []
    damaged: list[FileError] = []
    for part in parts:
        try:
            instance = read_instance(part)
        except FileError as error:
            damaged.append(error)
            continue
        if instance is not None and (instance.series_uid or instance.layout is not None):
            instances.append(instance)
    if damaged and not instances:
        raise damaged[0]
    if damaged:
        _LOG.warning("%s: %d damaged DICOM files are left out", source, len(damaged))
    return instances


def describe_series(instances: Sequence[Instance], source: Path) -> list[SeriesInfo]:
    """Sort files into series, and each series into volumes; described in order of number."""
    groups: dict[str, list[Instance]] = {}
    for instance in instances:
        # By the series alone: some tools give each of its slices a study of its own.
        groups.setdefault(instance.series_uid or instance.part.name, []).append(instance)
    studies: dict[str, list[tuple[int, SeriesInfo]]] = {}
    for group in groups.values():
        number = group[0].series_number
        for extra, volume in _volumes(group):
            info = _info(group, volume, extra, source)
            studies.setdefault(info.study_uid, []).append((-1 if number is None else number, info))
    return [info for rows in studies.values() for info in _numbered(rows)]


def read_series(info: SeriesInfo, *, accept_gaps: bool = False) -> Scan:
    """Take a series as a scan: its geometry now, voxels (1, I, J, K) when asked for.

    Args:
        info: From :func:`find_series`.
        accept_gaps: Bridge uneven gaps by interpolation onto an even grid.

    Raises:
        GeometryError: The slices make no grid, or their gaps are uneven.
        FileError: The pixels cannot be read.
    """
    where = f"{info.source}, {info.name}"
    if info.pixel_faults:
        raise FileError(
            where,
            expected="grey images that are whole",
            got="; ".join(info.pixel_faults),
            cure="Choose another series, or export it again.",
        )
    geometry = info.stack.geometry
    if info.faults or geometry is None:
        raise GeometryError(
            where,
            expected="slices of one volume",
            got="; ".join(info.faults),
            cure="Choose another series, or export the slices of one volume alone.",
        )
    if info.gaps and not accept_gaps:
        raise GeometryError(
            where,
            expected="slices at equal distances",
            got=info.gaps,
            cure="Find the missing slices, or interpolate between them with --accept-gaps.",
        )
    whole = info.stack

    def load() -> NDArray[Any]:
        voxels = read_voxels(whole.slices)
        if not whole.even:
            voxels = bridged(voxels, whole.places_k, geometry.shape[2])
        turned: NDArray[Any] = voxels.transpose(2, 1, 0)[None]
        return turned

    def load_slabs(cuts: Sequence[tuple[int, int]]) -> Iterator[NDArray[Any]]:
        dtype = type_of(whole.slices)
        for start, stop in cuts:
            slab = read_voxels(whole.slices[start:stop], dtype=dtype)
            yield slab.transpose(2, 1, 0)[None]

    return Scan(
        geometry,
        ("0",),
        load,
        modality=info.modality,
        source=where,
        slices=places_of(whole),
        load_slabs=load_slabs if whole.even else None,
    )


def read_slices(info: SeriesInfo) -> NDArray[Any]:
    """The slices of a series as they are, (1, I, J, slices), uneven gaps and all.

    Raises:
        FileError: The pixels cannot be read.
    """
    voxels: NDArray[Any] = read_voxels(info.stack.slices).transpose(2, 1, 0)[None]
    return voxels


def _volumes(group: Sequence[Instance]) -> list[tuple[str, list[Slice]]]:
    """The volumes of one series, each with what tells it from the others."""
    slices = [piece for instance in group for piece in instance.slices]
    placed = [piece for piece in slices if piece.position is not None and piece.orientation]
    if len(placed) < 4 or len(placed) < len(slices) or not doubled_places(slices):
        return [("", slices)]
    names = [*TRAITS, *sorted({name for piece in slices for name in piece.traits} - {*TRAITS})]
    varying = [name for name in names if len({piece.traits.get(name) for piece in slices}) > 1]
    for size in (1, 2):
        for chosen in combinations(varying, size):
            parts: dict[tuple[str, ...], list[Slice]] = {}
            for piece in slices:
                parts.setdefault(tuple(piece.traits.get(n, "") for n in chosen), []).append(piece)
            if all(len(part) > 1 and not doubled_places(part) for part in parts.values()):
                return [(_trait_text(chosen, key), part) for key, part in sorted(parts.items())]
    return [("", slices)]


def _trait_text(names: Sequence[str], values: Sequence[str]) -> str:
    pairs = zip(names, values, strict=True)
    return ", ".join(f"{name.replace('_', ' ')} {value or 'none'}" for name, value in pairs)[:80]


def _info(
    group: Sequence[Instance], slices: Sequence[Slice], extra: str, source: Path
) -> SeriesInfo:
    first = group[0]
    made = stack(slices) if slices else Stack(())
    pixels = _pixel_faults(group, slices)
    grid = made.geometry
    words = (first.description, extra)
    return SeriesInfo(
        id="",
        source=source,
        study_uid=first.study_uid,
        uid=first.series_uid,
        modality=first.modality,
        description="; ".join(word for word in words if word),
        slices=len(slices),
        shape=None if grid is None else grid.shape,
        spacing_mm=None if grid is None else grid.spacing_mm,
        axis_codes="" if grid is None else grid.axis_codes,
        gaps="" if made.even or made.faults else gaps_text(made.gaps_mm),
        tilt_degrees=made.tilt_degrees,
        original=first.image_type[:1] != ("DERIVED",),
        faults=(*pixels, *made.faults),
        doubts=_doubts(first, len(slices)),
        kernel=first.kernel,
        pixel_faults=pixels,
        stack=made,
    )


def _pixel_faults(group: Sequence[Instance], slices: Sequence[Slice]) -> tuple[str, ...]:
    faults = [] if slices else ["no images"]
    # Frames of one file share their layout; each file is looked at once.
    for part, layout in {id(piece.part): (piece.part, piece.layout) for piece in slices}.values():
        faults += faults_of_pixels(layout, part.size)
    if any(instance.modality_lut for instance in group):
        faults.append("a modality look-up table")
    if any(not np.isfinite([s.slope, s.intercept]).all() or s.slope == 0 for s in slices):
        faults.append("a rescale slope of 0")
    return tuple(dict.fromkeys(faults))[:3]


def _doubts(first: Instance, slices: int) -> tuple[str, ...]:
    doubts = []
    localiser = "LOCALIZER" in first.image_type or _LOCALISER.search(first.description)
    if localiser:
        doubts.append("a localiser")
    if first.sop_class.startswith(_SECONDARY_CAPTURE):
        doubts.append("a secondary capture")
    if first.modality not in _SCANS:
        doubts.append(f"modality {first.modality} is no scan")
    if 0 < slices < _FEWEST_SLICES:
        doubts.append(f"only {slices} slice{'s' if slices > 1 else ''}")
    return tuple(doubts)


def _numbered(rows: Sequence[tuple[int, SeriesInfo]]) -> list[SeriesInfo]:
    """Give each of a study its id: the number of the series where that is its own."""
    numbers = [number for number, _ in rows]
    seen: dict[int, int] = {}
    named = []
    for number, info in sorted(rows, key=lambda row: (row[0], row[1].uid)):
        text = str(max(0, number))
        if number < 0 or numbers.count(number) > 1:
            seen[number] = seen.get(number, 0) + 1
            text = f"{text}.{seen[number]}"
        named.append(replace(info, id=text))
    return named
