"""The header of one DICOM file: what the image is, and where each slice of it lies."""

from __future__ import annotations

import contextlib
import io
import struct
from dataclasses import dataclass, replace

from pydicom import dcmread

from medseg.core.errors import FileError
from medseg.io.dicom_frames import frames_of, moved, normal_of, tiles_of
from medseg.io.dicom_parts import Part, is_dicom
from medseg.io.dicom_records import TAGS, TRAITS, Header, Instance, PixelLayout, Slice

# Enough for the header of nearly every slice; a longer one is read again as a whole.
_HEAD_BYTES = 1 << 16
# With functional groups of some hundred frames.
_LONG_HEAD_BYTES = 1 << 22
_WANTED = list(TAGS.values())
_PIXELS = {(0x7FE0, 0x0008): "f4", (0x7FE0, 0x0009): "f8", (0x7FE0, 0x0010): ""}
# A number of frames beyond any scan.
_MOST_FRAMES = 100_000
# Of the SOP class of DICOMDIR files.
_DIRECTORY = b"1.2.840.10008.1.3.10"
# Traits that are binary numbers.
_BINARY = ("b_value",)


def read_instance(part: Part) -> Instance | None:
    """Read the header of one file; None where it is no DICOM.

    Raises:
        FileError: It begins as DICOM, but its header cannot be read.
    """
    try:
        head = part.read(0, _HEAD_BYTES)
        if head.startswith(b"\x1f\x8b") and part.method == "":
            part = replace(part, size=-1, method="gzip")
            head = part.read(0, _HEAD_BYTES)
        if not is_dicom(head):
            return None
        if b"1.2.840.10008.1.2.1.99" in head[:1024] and part.method == "":
            part = replace(part, size=-1, method="dataset")
            head = part.read()
        return _instance(part, _parse_growing(part, head))
    except FileError:
        raise
    except Exception as error:  # a damaged header raises almost anything in a parser
        raise _damaged(part, error) from error


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A header, and the first bytes of the pixel element that follows it, if one does."""

    header: Header
    syntax: str
    implicit: bool
    offset: int
    pixel_element: bytes


def _parse_growing(part: Part, head: bytes) -> _Parsed:
    """Parse the first bytes of a file, and more of them where its header is longer."""
    for length in (_LONG_HEAD_BYTES, -1):
        if len(head) not in (_HEAD_BYTES, _LONG_HEAD_BYTES):
            break
        # What is cut off raises almost anything in a parser.
        with contextlib.suppress(Exception):
            parsed = _parse(head)
            if parsed.pixel_element:
                return parsed
        head = part.read(0, length)
    return _parse(head)


def _parse(head: bytes) -> _Parsed:
    stream = io.BytesIO(head)
    dataset = dcmread(stream, stop_before_pixels=True, force=True, specific_tags=_WANTED)
    implicit, little = dataset.original_encoding
    offset = stream.tell()
    element = head[offset : offset + 12]
    tag = struct.unpack("<HH" if little else ">HH", element[:4].ljust(4, b"\0"))
    return _Parsed(
        Header.of(dataset, little=bool(little)),
        syntax=str(dataset.file_meta.get("TransferSyntaxUID", "")),
        implicit=bool(implicit),
        offset=offset,
        pixel_element=element if tag in _PIXELS and len(element) == 12 else b"",
    )


def _instance(part: Part, parsed: _Parsed) -> Instance:
    header = parsed.header
    layout = _layout(parsed)
    number = header.numbers("series_number")
    image_type = tuple(word.strip() for word in header.text("image_type").split("\\"))
    return Instance(
        part,
        study_uid=header.text("study_uid"),
        series_uid=header.text("series_uid"),
        sop_class=header.text("sop_class"),
        modality=header.text("modality"),
        description=header.description(),
        series_number=None if number is None else int(number[0]),
        image_type=image_type,
        layout=layout,
        slices=() if layout is None else _slices(header, part, layout, image_type=image_type),
        modality_lut=header.has("modality_lut"),
        kernel=header.text("kernel").replace("\\", " ")[:64],
    )


def _layout(parsed: _Parsed) -> PixelLayout | None:
    header, element = parsed.header, parsed.pixel_element
    rows, columns = header.short("rows"), header.short("columns")
    if not element or not rows or not columns:
        return None
    order = "<" if header.little else ">"
    wide = not parsed.implicit and element[4:6] in (b"OB", b"OW", b"UN", b"OF", b"OD")
    at = 8 if wide else 4
    (length,) = struct.unpack_from(f"{order}L", element, at)
    allocated = header.short("allocated")
    frames = header.number("frames", 1.0)
    return PixelLayout(
        syntax=parsed.syntax,
        offset=parsed.offset + at + 4,
        length=-1 if length == 0xFFFFFFFF else length,
        rows=rows,
        columns=columns,
        frames=max(1, int(frames)),
        samples=header.short("samples", 1),
        allocated=allocated,
        stored=header.short("stored", allocated) or allocated,
        signed=header.short("signed") == 1,
        real=_PIXELS[struct.unpack_from(f"{order}HH", element)],
        photometric=header.text("photometric"),
        big_endian=not header.little,
    )


def _slices(
    header: Header, part: Part, layout: PixelLayout, *, image_type: tuple[str, ...]
) -> tuple[Slice, ...]:
    if "MOSAIC" in image_type and layout.frames == 1:
        return tiles_of(header, _one(header, part, layout))
    if header.has("per_frame"):
        return frames_of(header, _one(header, part, layout), layout.frames)
    if layout.frames > _MOST_FRAMES:
        raise ValueError(f"{layout.frames} frames")
    first = _one(header, part, layout)
    if layout.frames == 1:
        return (first,)
    offsets = header.numbers("grid_offsets")
    if offsets is None or len(offsets) != layout.frames or first.orientation is None:
        return tuple(replace(first, frame=n, position=None) for n in range(layout.frames))
    # A dose grid (PS3.3 C.8.8.3.2): offsets along the normal, or positions if they do not
    # begin at 0.
    normal = normal_of(first.orientation)
    return tuple(
        replace(first, frame=n, position=moved(first.position, normal, offset - offsets[0]))
        for n, offset in enumerate(offsets)
    )


def _one(header: Header, part: Part, layout: PixelLayout) -> Slice:
    between = header.number("between", 0.0)
    traits = {name: header.text(name) for name in TRAITS if name not in _BINARY}
    for name in _BINARY:
        values = header.doubles(name)
        traits[name] = "" if values is None else f"{values[0]:g}"
    return Slice(
        part,
        layout,
        frame=0,
        tile=None,
        shape=(layout.rows, layout.columns),
        position=header.vector("position", 3),
        orientation=header.vector("orientation", 6),
        spacing=header.vector("spacing", 2),
        thickness=abs(between or header.number("thickness", 0.0)),
        slope=header.number("slope", 1.0),
        intercept=header.number("intercept", 0.0),
        traits=traits,
    )


def listed_files(part: Part) -> list[tuple[str, ...]] | None:
    """The files that a DICOMDIR refers to (PS3.3 F.3.2.2); None for any other file.

    Raises:
        FileError: It is a DICOMDIR, but damaged.
    """
    try:
        if _DIRECTORY not in part.read(0, 1024):
            return None
        dataset = dcmread(io.BytesIO(part.read()), force=True)
        records = Header.of(dataset, little=bool(dataset.original_encoding[1])).items("directory")
        names = [record.text("file_id") for record in records]
        return [tuple(word.strip() for word in name.split("\\")) for name in names if name]
    except Exception as error:
        raise _damaged(part, error) from error


def _damaged(part: Part, error: Exception) -> FileError:
    return FileError(
        f"{part.path}" if part.path.name == part.name else f"{part.path} ({part.name})",
        expected="a whole DICOM file",
        got=f"{type(error).__name__} in its header",
        cure="Copy or export it again.",
    )
