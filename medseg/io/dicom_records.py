"""What the header of a DICOM file comes to: records, and the raw elements they are made from.

Values are taken from the raw elements and converted here: it is quick, it warns of nothing,
and of a patient nothing is looked at. Lengths are millimetres and positions LPS, as DICOM
states them (PS3.3 C.7.6.2); only :class:`medseg.core.geometry.Geometry` turns them to RAS.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.charset import python_encoding
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medseg.io.dicom_parts import Part

Vector = tuple[float, ...]

TAGS = {
    "charset": 0x00080005, "image_type": 0x00080008, "sop_class": 0x00080016,
    "acquisition_time": 0x00080032, "modality": 0x00080060, "description": 0x0008103E,
    "thickness": 0x00180050, "repetition": 0x00180080, "echo_time": 0x00180081,
    "inversion": 0x00180082, "echo": 0x00180086, "between": 0x00180088,
    "trigger": 0x00181060, "kernel": 0x00181210, "b_value": 0x00189087,
    "study_uid": 0x0020000D, "series_uid": 0x0020000E, "series_number": 0x00200011,
    "acquisition": 0x00200012, "instance": 0x00200013, "position": 0x00200032,
    "orientation": 0x00200037, "temporal": 0x00200100,
    "samples": 0x00280002, "photometric": 0x00280004, "frames": 0x00280008, "rows": 0x00280010,
    "columns": 0x00280011, "spacing": 0x00280030, "allocated": 0x00280100, "stored": 0x00280101,
    "high_bit": 0x00280102, "signed": 0x00280103, "intercept": 0x00281052, "slope": 0x00281053,
    "modality_lut": 0x00283000, "csa": 0x00291010, "csa_owner": 0x00290010,
    "grid_offsets": 0x3004000C, "mosaic_count": 0x0019100A,
    "shared": 0x52009229, "per_frame": 0x52009230,
}  # fmt: skip
# Those of the functional groups of enhanced objects, and of a DICOMDIR.
GROUP_TAGS = {
    "plane_position": 0x00209113, "plane_orientation": 0x00209116, "pixel_measures": 0x00289110,
    "pixel_values": 0x00289145, "frame_content": 0x00209111, "mr_frame_type": 0x00189226,
    "ct_frame_type": 0x00189329, "frame_type": 0x00089007, "echo_sequence": 0x00189114,
    "effective_echo": 0x00189082, "diffusion": 0x00189117, "temporal_index": 0x00209128,
    "dimension_index": 0x00209157, "directory": 0x00041220, "file_id": 0x00041500,
}  # fmt: skip
# Those of segmentations (PS3.3 C.8.20) and of structure sets (PS3.3 C.8.8.5, C.8.8.6).
LABEL_TAGS = {
    "referenced_series": 0x00081115, "padding": 0x00280120,
    "segmentation_type": 0x00620001, "segments": 0x00620002, "segment_number": 0x00620004,
    "segment_label": 0x00620005, "segment_id": 0x0062000A, "segment_reference": 0x0062000B,
    "cielab": 0x0062000D, "fraction_of": 0x0062000E,
    "frames_of_reference": 0x30060010, "referenced_study": 0x30060012,
    "rt_series": 0x30060014, "rois": 0x30060020, "roi_number": 0x30060022,
    "roi_name": 0x30060026, "roi_contours": 0x30060039, "roi_colour": 0x3006002A,
    "contours": 0x30060040, "contour_type": 0x30060042, "contour_data": 0x30060050,
    "roi_reference": 0x30060084,
}  # fmt: skip
_ALL_TAGS = {**TAGS, **GROUP_TAGS, **LABEL_TAGS}
# What tells apart slices that lie at one place: echoes, phases, contrasts, directions.
TRAITS = (
    "image_type", "echo", "echo_time", "temporal", "acquisition", "trigger", "b_value",
    "inversion", "repetition", "acquisition_time",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """How the pixels of a file are stored.

    Attributes:
        syntax: UID of the transfer syntax.
        offset: Where the value of the pixel element begins in the file.
        length: Its length in bytes; -1 where it is encapsulated (compressed).
        rows, columns, frames, samples: Its size.
        allocated, stored: Bits per sample.
        signed: Whether samples are two's complement.
        real: ``"f4"`` or ``"f8"`` where pixels are real numbers, else "".
        photometric: As DICOM names it.
        big_endian: Byte order of pixels that are not compressed.
    """

    syntax: str
    offset: int
    length: int
    rows: int
    columns: int
    frames: int
    samples: int
    allocated: int
    stored: int
    signed: bool
    real: str
    photometric: str
    big_endian: bool


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice: a file, or a frame or tile of one.

    Attributes:
        part: The file.
        layout: How its pixels are stored.
        frame: Number of the frame in it, from 0.
        tile: First row and first column of a mosaic's tile; None for a whole frame.
        shape: Rows and columns.
        position: LPS mm of the centre of the first pixel; None where none is stated.
        orientation: LPS cosines of the direction along a row, then down a column.
        spacing: Distance between rows, then between columns, in mm.
        thickness: Distance to the next slice that the header claims, in mm; 0 unknown.
        slope, intercept: From stored to real values.
        traits: What may tell it from another slice at its place.
    """

    part: Part
    layout: PixelLayout
    frame: int
    tile: tuple[int, int] | None
    shape: tuple[int, int]
    position: Vector | None
    orientation: Vector | None
    spacing: Vector | None
    thickness: float
    slope: float
    intercept: float
    traits: dict[str, str]


@dataclass(frozen=True, slots=True)
class Instance:
    """One DICOM file as its header describes it.

    Attributes:
        layout: How pixels are stored; None where there are none.
        slices: Its slices; empty where there is no image.
        kernel: Of the reconstruction, as the scanner names it.
    """

    part: Part
    study_uid: str
    series_uid: str
    sop_class: str
    modality: str
    description: str
    series_number: int | None
    image_type: tuple[str, ...]
    layout: PixelLayout | None
    slices: tuple[Slice, ...] = ()
    modality_lut: bool = False
    kernel: str = ""


@dataclass(slots=True)
class Header:
    """Raw elements of one data set with their values converted as they are asked for."""

    elements: dict[int, DataElement | RawDataElement]
    little: bool = True

    @classmethod
    def of(cls, dataset: Dataset, *, little: bool) -> Header:
        """Take the elements of a data set as they were read, none of them converted."""
        return cls({int(tag): element for tag, element in dataset.items()}, little)

    def has(self, name: str) -> bool:
        """Whether the element is there."""
        return _ALL_TAGS[name] in self.elements

    def raw(self, name: str) -> bytes | None:
        """The bytes of an element; None where it is absent."""
        element = self.elements.get(_ALL_TAGS[name])
        value = element.value if isinstance(element, RawDataElement) else None
        return value if isinstance(value, bytes) else None

    def text(self, name: str) -> str:
        """A text, without padding; "" where it is absent."""
        raw = self.raw(name)
        return "" if raw is None else raw.decode("latin-1").strip(" \0\r\n\t")

    def numbers(self, name: str) -> Vector | None:
        """Decimal strings; None where the element is absent, empty or not of numbers."""
        try:
            values = tuple(float(part) for part in self.text(name).split("\\"))
        except ValueError:
            return None
        return values if all(map(math.isfinite, values)) else None

    def number(self, name: str, default: float) -> float:
        """The first decimal string, or ``default``."""
        values = self.numbers(name)
        return default if values is None else values[0]

    def vector(self, name: str, length: int) -> Vector | None:
        """Decimal strings of exactly this many; None for anything else."""
        values = self.numbers(name)
        return values if values is not None and len(values) == length else None

    def short(self, name: str, default: int = 0) -> int:
        """An unsigned 16-bit number, or ``default``."""
        raw = self.raw(name)
        if raw is None or len(raw) < 2:
            return default
        return int(struct.unpack_from(f"{self._order}H", raw)[0])

    def doubles(self, name: str) -> Vector | None:
        """Binary 64-bit numbers; None where there are none."""
        raw = self.raw(name) or b""
        count = len(raw) // 8
        return struct.unpack_from(f"{self._order}{count}d", raw) if count else None

    def shorts(self, name: str) -> tuple[int, ...]:
        """Unsigned 16-bit numbers; empty where there are none."""
        raw = self.raw(name) or b""
        return struct.unpack_from(f"{self._order}{len(raw) // 2}H", raw)

    def longs(self, name: str) -> tuple[int, ...]:
        """Unsigned 32-bit numbers; empty where there are none."""
        raw = self.raw(name) or b""
        return struct.unpack_from(f"{self._order}{len(raw) // 4}L", raw)

    def items(self, name: str) -> Iterator[Header]:
        """The items of a sequence; none where it is absent."""
        element = self.elements.get(_ALL_TAGS[name])
        if isinstance(element, RawDataElement):
            element = convert_raw_data_element(element)
        value = None if element is None else element.value
        for item in value if isinstance(value, Sequence) else ():
            yield Header.of(item, little=self.little)

    @property
    def _order(self) -> str:
        return "<" if self.little else ">"

    def description(self) -> str:
        """The series description in the character set that the file names."""
        return self.readable("description", charset=self.text("charset"))[:64]

    def readable(self, name: str, *, charset: str) -> str:
        """A text for people: in a character set (PS3.3 C.12.1.1.2), on one line."""
        raw = self.raw(name) or b""
        encoding = python_encoding.get(charset.split("\\")[-1], "latin-1")
        try:
            text = raw.decode(encoding, errors="replace")
        except LookupError:
            text = raw.decode("latin-1")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())
