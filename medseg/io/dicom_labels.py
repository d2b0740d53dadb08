"""What DICOM segmentations and structure sets share: structures, their colours, a mask to paint.

Names and colours of structures are read, and where they lie; nothing of a patient.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread

from medseg.core.errors import FileError, LabelError, MedsegError
from medseg.core.geometry import Geometry
from medseg.core.labels import Colour, Label, LabelSet, palette_colour
from medseg.io.dicom_parts import Part
from medseg.io.dicom_records import LABEL_TAGS, TAGS, Header
from medseg.io.stream import check_memory

_LOG = logging.getLogger(__name__)
_HIGHEST_VALUE = 65535
_LONGEST_NAME = 180
# XYZ under D50 to linear sRGB (IEC 61966-2-1), adapted to D65 after Bradford.
_SRGB_OF_XYZ = np.array(
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
)
_WHITE_D50 = np.array([0.96422, 1.0, 0.82521])


@dataclass(frozen=True)
class LabelledMask:
    """A label image that names its structures.

    Attributes:
        labels: (I, J, K) uint8 or uint16; 0 is background.
        geometry: The grid: that of the source series where it is at hand.
        label_set: What the values mean.
        source: What to call it in messages.
    """

    labels: NDArray[Any]
    geometry: Geometry
    label_set: LabelSet
    source: str


@dataclass(frozen=True)
class Structure:
    """A segment or a region of interest: its number in the file, its name, its colour."""

    number: int
    name: str
    colour: Colour | None


def place_of(part: Part) -> str:
    """How messages call a file, also one in a zip."""
    inside = part.path.name != part.name
    return f"{part.path} ({part.name})" if inside else str(part.path)


def damaged(part: Part, what: str) -> FileError:
    """The error for an object that contradicts itself or is cut off."""
    return FileError(
        place_of(part),
        expected="a whole DICOM segmentation or structure set",
        got=what,
        cure="Copy or export it again.",
    )


@contextmanager
def parsing(part: Part) -> Iterator[None]:
    """Whatever a parser raises on a damaged file becomes an error of ours."""
    try:
        yield
    except (MedsegError, MemoryError):
        raise
    except Exception as error:
        raise damaged(part, f"{type(error).__name__} in it") from error


def read_elements(part: Part, names: Sequence[str]) -> Header:
    """Read the named elements of an object, and all that lies below them.

    Raises:
        FileError: The file cannot be read.
    """
    tags = [LABEL_TAGS.get(name) or TAGS[name] for name in names]
    with parsing(part):
        stream = io.BytesIO(part.read())
        dataset = dcmread(stream, stop_before_pixels=True, force=True, specific_tags=tags)
        return Header.of(dataset, little=bool(dataset.original_encoding[1]))


def structures_of(
    rows: Sequence[tuple[int, str, Colour | None]], *, kind: str
) -> tuple[Structure, ...]:
    """Structures with names of their own: one that has none gets its number, a second a 2.

    Args:
        rows: Number, name and colour of each.
        kind: What to call one without a name, for example ``"segment"``.
    """
    made: list[Structure] = []
    used: set[str] = set()
    for number, stated, colour in rows:
        first = (stated or f"{kind} {number}")[:_LONGEST_NAME]
        name, copy = first, 1
        while name.casefold() in used:
            copy += 1
            name = f"{first} {copy}"
        used.add(name.casefold())
        made.append(Structure(number, name, colour))
    return tuple(made)


def label_set_of(structures: Sequence[Structure], *, where: str) -> LabelSet:
    """Label values from the structures' own numbers; counted from 1 where these do not serve.

    Raises:
        LabelError: There is no structure.
    """
    numbers = [structure.number for structure in structures]
    if not numbers:
        raise LabelError(where, expected="structures with an outline", got="none")
    serves = len(set(numbers)) == len(numbers) and 1 <= min(numbers) <= max(numbers)
    if not serves or max(numbers) > _HIGHEST_VALUE:
        numbers = list(range(1, len(numbers) + 1))
    return LabelSet(
        labels=tuple(
            Label(
                value=number,
                name=structure.name,
                colour=structure.colour or palette_colour(position),
                sources=(number,),
            )
            for position, (number, structure) in enumerate(zip(numbers, structures, strict=True))
        )
    )


def chosen(
    structures: Sequence[Structure], wanted: LabelSet, *, where: str
) -> list[tuple[Structure, int]]:
    """The structures that are wanted by name, with the values they get, in painting order."""
    by_name = {structure.name.casefold(): structure for structure in structures}
    found = [
        (by_name[label.name.casefold()], label.value)
        for label in wanted.labels
        if label.name.casefold() in by_name
    ]
    if not found:
        _LOG.warning("%s: holds none of %s", where, ", ".join(wanted.names[:8]))
    return found


def colour_of_cielab(encoded: Sequence[int]) -> Colour | None:
    """Red, green and blue of a colour in CIELab as DICOM encodes it; None for anything else.

    PS3.3 C.10.7.1.1: 16 bits each for L* from 0 to 100, and for a* and b* from -128 to 127,
    under the D50 white of the ICC connection space; from there to sRGB (IEC 61966-2-1).
    """
    if len(encoded) != 3:
        return None
    scaled = np.asarray(encoded, dtype=np.float64) / 65535.0
    lightness, green_red, blue_yellow = scaled * (100.0, 255.0, 255.0) - (0.0, 128.0, 128.0)
    middle = (lightness + 16.0) / 116.0
    roots = np.array([middle + green_red / 500.0, middle, middle - blue_yellow / 200.0])
    low = 3 * (6 / 29) ** 2 * (roots - 4 / 29)
    linear = _SRGB_OF_XYZ @ (np.where(roots > 6 / 29, roots**3, low) * _WHITE_D50)
    linear = linear.clip(0.0, 1.0)
    shown = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (int(value) for value in np.rint(shown * 255.0))
    return red, green, blue


class Canvas:
    """A mask in the making: one structure after the other, a later one over an earlier one."""

    def __init__(self, geometry: Geometry, label_set: LabelSet, *, where: str) -> None:
        cells = int(np.prod([int(side) for side in geometry.shape], dtype=object))
        check_memory(where, 2 * cells * label_set.dtype.itemsize)
        self.labels = np.zeros(geometry.shape, dtype=label_set.dtype)
        self.geometry, self.label_set, self.where = geometry, label_set, where
        self._painted_over = 0

    def paint(self, cells: tuple[NDArray[Any], ...], values: NDArray[Any] | int) -> None:
        """Paint voxels.

        Args:
            cells: Their indices along I, J and K.
            values: One for all, or one for each.
        """
        before = self.labels[cells]
        self._painted_over += int(np.count_nonzero((before != 0) & (before != values)))
        self.labels[cells] = values

    def mask(self) -> LabelledMask:
        """The mask; a warning tells how many voxels several structures claimed."""
        if self._painted_over:
            _LOG.warning(
                "%s: structures overlap; %d voxels belong to the later one",
                self.where,
                self._painted_over,
            )
        return LabelledMask(self.labels, self.geometry, self.label_set, self.where)
