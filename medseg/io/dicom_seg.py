"""DICOM segmentations as label images (PS3.3 A.51, C.8.20; label maps: A.101).

Each frame is placed by its own position in the patient. What order frames stand in, and
which slices have none, does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import FileError, GeometryError, LabelError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.scan import Scan
from medseg.io.dicom_header import read_instance
from medseg.io.dicom_labels import (
    Canvas,
    LabelledMask,
    Structure,
    chosen,
    colour_of_cielab,
    damaged,
    label_set_of,
    parsing,
    place_of,
    read_elements,
    structures_of,
)
from medseg.io.dicom_parts import Part, part_of
from medseg.io.dicom_pixels import faults_of_pixels, read_voxels
from medseg.io.dicom_placing import grid_of_frames, placed
from medseg.io.dicom_records import Header, Instance, PixelLayout, Slice
from medseg.io.stream import check_memory

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_LABEL_MAP_CLASS = SEG_CLASSES[1]
_TAGS = (
    "charset", "referenced_series", "padding", "segmentation_type", "segments", "fraction_of",
    "shared", "per_frame",
)  # fmt: skip


@dataclass(frozen=True)
class Segmentation:
    """A segmentation as its header describes it.

    Attributes:
        part: The file.
        kind: ``"BINARY"``, ``"FRACTIONAL"`` or ``"LABELMAP"``.
        layout: How pixels are stored.
        frames: Where each lies.
        segment_of: The segment that each frame shows; 0 in a label map.
        structures: The segments, background left out.
        references: UIDs of the series that it was drawn on.
        fraction_of: The stored value that means all of a voxel.
        background: Stored values of a label map that mean no structure.
        between_mm: Distance of slices as stated; 0 unknown.
    """

    part: Part
    kind: str
    layout: PixelLayout
    frames: tuple[Slice, ...]
    segment_of: tuple[int, ...]
    structures: tuple[Structure, ...]
    references: tuple[str, ...]
    fraction_of: int
    background: tuple[int, ...]
    between_mm: float

    @property
    def label_set(self) -> LabelSet:
        """Label values, names and colours.

        Raises:
            LabelError: There are none.
        """
        return label_set_of(self.structures, where=place_of(self.part))

    def lies_on(self, geometry: Geometry) -> bool:
        """Whether every frame lies on a grid and inside it."""
        try:
            places = [placed(piece, geometry, where="") for piece in self.frames]
        except GeometryError:
            return False
        corners = np.array([place.far_corners for place in places])
        return bool((corners >= 0).all() and (corners < geometry.shape).all())


def read_dicom_seg(
    file: str | Path | Part, *, source: Scan | None = None, labels: LabelSet | None = None
) -> LabelledMask:
    """Read a DICOM segmentation as a label image.

    Binary, fractional (half of a voxel and more belongs to the segment) and label maps. Where
    segments overlap the later one stays, and a warning says how many voxels that concerns.

    Args:
        file: The segmentation.
        source: The scan it was drawn on; None takes the segmentation's own grid.
        labels: Structures wanted by their names, in painting order, with the values they get;
            None takes all with their segment numbers.

    Returns:
        Values (I, J, K) on the grid of ``source``.

    Raises:
        FileError: The file is no segmentation, or damaged.
        GeometryError: Frames lie beside the grid of the scan, or make no grid of their own.
        LabelError: It has no segments, or holds values of none.
    """
    part = file if isinstance(file, Part) else part_of(Path(file))
    instance = read_instance(part)
    if instance is None or instance.sop_class not in SEG_CLASSES:
        raise FileError(str(part.path), expected="a DICOM segmentation", got="another object")
    return paint(describe_seg(instance), source=source, labels=labels)


def describe_seg(instance: Instance) -> Segmentation:
    """Describe a segmentation by its header, pixels unread.

    Raises:
        FileError: It contradicts itself, or is of a kind that is not known.
    """
    with parsing(instance.part):
        made = _described(instance)
        _check(made)
        return made


def _described(instance: Instance) -> Segmentation:
    part, layout = instance.part, instance.layout
    if layout is None or not instance.slices:
        raise damaged(part, "no pixels")
    header = read_elements(part, _TAGS)
    kind = header.text("segmentation_type").upper()
    if instance.sop_class == _LABEL_MAP_CLASS:
        kind = "LABELMAP"
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise damaged(part, f"a segmentation of the type '{kind[:20]}'")
    charset = header.text("charset")
    structures = structures_of(
        [
            (
                item.short("segment_number"),
                item.readable("segment_label", charset=charset),
                colour_of_cielab(item.shorts("cielab")),
            )
            for item in header.items("segments")
            # The background of a label map is segment 0.
            if item.short("segment_number")
        ],
        kind="segment",
    )
    # Colours of a palette are for the eye; the stored numbers are the segments.
    grey = replace(layout, photometric="MONOCHROME2") if kind == "LABELMAP" else layout
    padding = header.shorts("padding")[:1]
    shared = next(header.items("shared"), None)
    return Segmentation(
        part,
        kind,
        grey,
        frames=tuple(replace(piece, layout=grey) for piece in instance.slices),
        segment_of=_segments_of_frames(header, shared, len(instance.slices)),
        structures=structures,
        references=tuple(item.text("series_uid") for item in header.items("referenced_series")),
        fraction_of=header.short("fraction_of", 255) or 255,
        background=(0, *padding) if kind == "LABELMAP" else (0,),
        between_mm=_between_mm(shared),
    )


def paint(
    seg: Segmentation, *, source: Scan | None = None, labels: LabelSet | None = None
) -> LabelledMask:
    """Paint the frames of a segmentation onto a grid, as :func:`read_dicom_seg` says."""
    where = place_of(seg.part)
    label_set = seg.label_set if labels is None else labels
    wanted = chosen(seg.structures, label_set, where=where)
    if source is None:
        geometry = grid_of_frames(seg.frames, between_mm=seg.between_mm, where=where)
    else:
        geometry = source.geometry
    canvas = Canvas(geometry, label_set, where=where)
    frame = _pixels(seg)
    places = [placed(piece, geometry, where=where) for piece in seg.frames]
    if seg.kind == "LABELMAP":
        table = _table(seg, wanted)
        for number, place in enumerate(places):
            values = _looked_up(frame(number), table, seg)
            seen = np.nonzero(values)
            canvas.paint(place.cells(seen, geometry, where=where), values[seen])
        return canvas.mask()
    for structure, value in wanted:
        for number, place in enumerate(places):
            if seg.segment_of[number] == structure.number:
                seen = np.nonzero(frame(number))
                canvas.paint(place.cells(seen, geometry, where=where), value)
    return canvas.mask()


def _segments_of_frames(header: Header, shared: Header | None, frames: int) -> tuple[int, ...]:
    def stated(group: Header | None) -> int:
        item = None if group is None else next(group.items("segment_id"), None)
        return 0 if item is None else item.short("segment_reference")

    for_all = stated(shared)
    numbers = tuple(stated(group) or for_all for group in header.items("per_frame"))
    return numbers if len(numbers) == frames else (for_all,) * frames


def _between_mm(shared: Header | None) -> float:
    measures = None if shared is None else next(shared.items("pixel_measures"), None)
    return 0.0 if measures is None else abs(measures.number("between", 0.0))


def _check(seg: Segmentation) -> None:
    known = {structure.number for structure in seg.structures}
    strange = sorted(set(seg.segment_of) - known)
    if seg.kind != "LABELMAP" and strange:
        raise damaged(seg.part, f"frames of segment {strange[0]}, which is not described")
    if len(known) != len(seg.structures):
        raise damaged(seg.part, "two segments of one number")


def _pixels(seg: Segmentation) -> Callable[[int], NDArray[Any]]:
    """What gives the pixels (rows, columns) of a frame: inside or not, or a label map's values.

    Raises:
        FileError: They are cut off or cannot be decoded.
    """
    layout = seg.layout
    if layout.allocated == 1:
        return _bits(seg)
    faults = faults_of_pixels(layout, seg.part.size)
    if faults:
        raise damaged(seg.part, "; ".join(faults))
    check_memory(place_of(seg.part), 4 * layout.rows * layout.columns * len(seg.frames))
    stored = read_voxels(seg.frames)
    if seg.kind == "LABELMAP":
        return lambda number: np.asarray(stored[number])
    least = seg.fraction_of / 2 if seg.kind == "FRACTIONAL" else 1
    return lambda number: np.asarray(stored[number] >= least)


def _bits(seg: Segmentation) -> Callable[[int], NDArray[Any]]:
    """Frames of one bit a pixel, packed without regard to bytes (PS3.5 8.1.1)."""
    layout, part = seg.layout, seg.part
    each = layout.rows * layout.columns
    needed = math.ceil(each * len(seg.frames) / 8)
    if layout.length < 0:
        raise damaged(part, "compressed pixels of one bit")
    try:
        raw = part.read()[layout.offset : layout.offset + min(layout.length, needed + needed % 2)]
    except Exception as error:  # of a damaged zip or gzip
        raise damaged(part, str(error)) from error
    if len(raw) < needed:
        raise damaged(part, f"pixels cut off ({len(raw)} of {needed} bytes)")
    packed = np.frombuffer(raw, dtype=np.uint8)
    if layout.big_endian and len(packed) % 2 == 0:
        packed = packed.reshape(-1, 2)[:, ::-1].reshape(-1)

    def frame(number: int) -> NDArray[Any]:
        first, last = number * each, (number + 1) * each
        bits = np.unpackbits(packed[first // 8 : math.ceil(last / 8)], bitorder="little")
        start = first % 8
        return bits[start : start + each].reshape(layout.rows, layout.columns)

    return frame


def _table(seg: Segmentation, wanted: Sequence[tuple[Structure, int]]) -> NDArray[np.int32]:
    """From stored values of a label map to label values; -1 where no segment is described."""
    table = np.full(1 << 16, -1, dtype=np.int32)
    for structure in seg.structures:
        table[structure.number] = 0
    table[list(seg.background)] = 0
    for structure, value in wanted:
        table[structure.number] = value
    return table


def _looked_up(
    stored: NDArray[Any], table: NDArray[np.int32], seg: Segmentation
) -> NDArray[np.int32]:
    if stored.dtype.kind not in "iu" or stored.min() < 0 or stored.max() >= len(table):
        raise damaged(seg.part, "values that no segment can have")
    values: NDArray[np.int32] = table[stored]
    if values.min() < 0:
        raise LabelError(
            place_of(seg.part),
            expected="values of the segments that it describes",
            got=str(int(stored[values < 0][0])),
            cure="Export it again.",
        )
    return values
