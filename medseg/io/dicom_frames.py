"""Slices that share one DICOM file: frames of enhanced objects and tiles of Siemens mosaics."""

from __future__ import annotations

import math
import struct
from dataclasses import replace

from medseg.core.errors import FileError
from medseg.io.dicom_records import Header, Slice, Vector


def normal_of(orientation: Vector) -> Vector:
    """The unit normal of a slice, row direction times column direction, in LPS."""
    a, b, c, x, y, z = orientation
    normal = (b * z - c * y, c * x - a * z, a * y - b * x)
    length = math.sqrt(sum(part * part for part in normal)) or 1.0
    return tuple(part / length for part in normal)


def moved(position: Vector | None, direction: Vector, distance_mm: float) -> Vector | None:
    """A position some millimetres along a unit direction."""
    if position is None:
        return None
    return tuple(p + distance_mm * d for p, d in zip(position, direction, strict=True))


def frames_of(header: Header, base: Slice, frames: int) -> tuple[Slice, ...]:
    """Frames of an enhanced object: each has its own groups, and shares the rest.

    PS3.3 C.7.6.16: position, orientation, spacing and rescaling stand in functional groups,
    per frame or shared by all.

    Raises:
        FileError: There are fewer groups than frames.
    """
    shared = next(header.items("shared"), None)
    groups = list(header.items("per_frame"))
    if len(groups) != frames:
        raise FileError(
            str(base.part.path),
            expected=f"functional groups for {frames} frames",
            got=f"{len(groups)}",
            cure="Export the series again.",
        )
    return tuple(_frame(base, number, group, shared) for number, group in enumerate(groups))


def _frame(base: Slice, number: int, group: Header, shared: Header | None) -> Slice:
    def find(sequence: str) -> Header | None:
        for source in (group, shared):
            item = None if source is None else next(source.items(sequence), None)
            if item is not None:
                return item
        return None

    place, turn = find("plane_position"), find("plane_orientation")
    measures, values = find("pixel_measures"), find("pixel_values")
    thickness = base.thickness
    if measures is not None:
        thickness = abs(measures.number("between", 0.0) or measures.number("thickness", thickness))
    return replace(
        base,
        frame=number,
        position=base.position if place is None else place.vector("position", 3),
        orientation=base.orientation if turn is None else turn.vector("orientation", 6),
        spacing=base.spacing if measures is None else measures.vector("spacing", 2),
        thickness=thickness,
        slope=base.slope if values is None else values.number("slope", 1.0),
        intercept=base.intercept if values is None else values.number("intercept", 0.0),
        traits=_traits(group, base),
    )


def _traits(group: Header, base: Slice) -> dict[str, str]:
    traits = dict(base.traits)
    for sequence in ("mr_frame_type", "ct_frame_type"):
        for item in group.items(sequence):
            traits["image_type"] = item.text("frame_type")
    for item in group.items("echo_sequence"):
        traits["echo_time"] = str(item.doubles("effective_echo"))
    for item in group.items("diffusion"):
        traits["b_value"] = str(item.doubles("b_value"))
    for item in group.items("frame_content"):
        traits["temporal"] = str(item.longs("temporal_index") or item.text("temporal"))
        for axis, value in enumerate(item.longs("dimension_index"), start=1):
            traits[f"dimension {axis}"] = str(value)
    return traits


def tiles_of(header: Header, base: Slice) -> tuple[Slice, ...]:
    """Slices of a Siemens mosaic: tiles in one square picture, row by row.

    The stated position is that of the whole picture's corner; the first slice lies where a
    slice of its size has the same centre (as nibabel's MosaicWrapper derives it).

    Raises:
        FileError: The header does not say how many slices there are.
    """
    csa = csa_values(header.raw("csa") or b"")
    count = int(csa.get("NumberOfImagesInMosaic", (header.short("mosaic_count"),))[0])
    if not 0 < count <= 4096 or base.orientation is None or base.spacing is None:
        raise FileError(
            str(base.part.path),
            expected="a mosaic that says how many slices it holds, and where",
            got=f"{count} slices" if count else "no such number",
            cure="Export the series as enhanced or as single slices.",
        )
    side = math.ceil(math.sqrt(count))
    rows, columns = base.shape[0] // side, base.shape[1] // side
    if (rows * side, columns * side) != base.shape:
        raise FileError(
            str(base.part.path),
            expected=f"a mosaic of {side} x {side} equal tiles",
            got=f"a picture of {base.shape[1]} x {base.shape[0]}",
            cure="Export the series as enhanced or as single slices.",
        )
    normal = normal_of(base.orientation)
    stated = csa.get("SliceNormalVector", ())
    if len(stated) == 3 and sum(a * b for a, b in zip(stated, normal, strict=True)) < 0:
        normal = tuple(-part for part in normal)
    corner = moved(
        base.position, base.orientation[:3], base.spacing[1] * (base.shape[1] - columns) / 2
    )
    corner = moved(corner, base.orientation[3:], base.spacing[0] * (base.shape[0] - rows) / 2)
    return tuple(
        replace(
            base,
            tile=(number // side * rows, number % side * columns),
            shape=(rows, columns),
            position=moved(corner, normal, number * base.thickness),
        )
        for number in range(count)
    )


def csa_values(raw: bytes) -> dict[str, Vector]:
    """The numbers in a Siemens CSA header of version 2 ("SV10"); others give nothing.

    Layout as described by nibabel's notes on Siemens CSA headers: per tag a name of 64
    bytes and five fields, then items, each with four lengths and padded to 4 bytes.
    """
    found: dict[str, Vector] = {}
    if raw[:4] != b"SV10" or len(raw) < 16:
        return found
    (count,) = struct.unpack_from("<I", raw, 8)
    position = 16
    for _ in range(min(count, 256)):
        if position + 84 > len(raw):
            break
        name = raw[position : position + 64].split(b"\0")[0].decode("latin-1")
        (items,) = struct.unpack_from("<i", raw, position + 76)
        position += 84
        values = []
        for _ in range(max(0, min(items, 4096))):
            if position + 16 > len(raw):
                return found
            (length,) = struct.unpack_from("<i", raw, position + 4)
            text = raw[position + 16 : position + 16 + max(0, length)].split(b"\0")[0]
            position += 16 + (max(0, length) + 3) // 4 * 4
            if text.strip():
                values.append(text)
        try:
            found[name] = tuple(float(value) for value in values)
        except ValueError:
            continue
    return found
