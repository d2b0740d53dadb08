"""PNG, JPEG and TIFF headers, checked before a codec sees the file.

Pillow only warns of a picture that is far too large or of a damaged TIFF directory, and
Python's warning filters belong to the whole process. So our own parser finds sizes and pages
first and refuses what is damaged.

References: PNG (ISO/IEC 15948), JPEG (ITU-T T.81), TIFF 6.0 and BigTIFF.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from medseg.core.errors import FileError
from medseg.io.stream import MAX_DEFLATE_RATIO

# As Pillow warns at: about 9459 x 9459 pixels.
MAX_PIXELS = (1 << 30) // 12
_MAX_PAGES = 1 << 16
_MAX_ENTRIES = 4096
# Of all pages together: directories may overlap, so that a small file could hold very many.
_MAX_FIELDS = 1 << 20
_MAX_VALUES = 1 << 24
_MAX_SEGMENTS = 1 << 16
# Bytes of a value of each TIFF field type.
_FIELD_BYTES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
    16: 8, 17: 8, 18: 8,
}  # fmt: skip
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES = 256, 257, 258, 259, 277
_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES = 273, 279, 324, 325
# Start of frame, which gives the size; the rest of 0xC0 to 0xCF are tables.
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}


@dataclass(frozen=True)
class Pages:
    """What the header says: columns, rows, and the number of pages of that size."""

    width: int
    height: int
    count: int = 1


def read_pages(path: Path) -> Pages:
    """Read the size of a picture and the number of its pages; refuse what a codec must not see.

    Raises:
        FileError: The header is damaged, the picture too large, or its pages differ in size.
    """
    with path.open("rb") as stream:
        magic = stream.read(4)
        try:
            if magic == b"\x89PNG":
                sizes = [_png(stream, path)]
            elif magic[:2] == b"\xff\xd8":
                sizes = [_jpeg(stream)]
            else:
                sizes = _Tiff(stream, path.stat().st_size).pages()
        except (struct.error, ValueError, OverflowError) as error:
            reason = str(error) if type(error) is ValueError else "a damaged header"
            raise _bad(path, "a whole picture", reason) from error
    width, height = sizes[0]
    if min(width, height) < 1 or width * height > MAX_PIXELS:
        raise FileError(
            str(path),
            expected=f"a picture of 1 to {MAX_PIXELS} pixels",
            got=f"{width} x {height}",
            cure="Cut it into smaller pictures.",
        )
    if any(size != sizes[0] for size in sizes):
        raise FileError(
            str(path),
            expected="pages of one size",
            got=" and ".join(sorted({f"{w} x {h}" for w, h in sizes})[:3]),
            cure="Save each size as a file.",
        )
    return Pages(width, height, len(sizes))


def _png(stream: BinaryIO, path: Path) -> tuple[int, int]:
    stream.seek(12)
    name, width, height, bits, colour = struct.unpack(">4sIIBB", stream.read(14))
    if name != b"IHDR":
        raise ValueError("a damaged header")
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    if width * height * samples * bits // 8 > path.stat().st_size * MAX_DEFLATE_RATIO:
        raise ValueError(f"{path.stat().st_size} bytes for {width} x {height} pixels")
    return width, height


def _jpeg(stream: BinaryIO) -> tuple[int, int]:
    stream.seek(2)
    for _ in range(_MAX_SEGMENTS):
        prefix, marker = struct.unpack("2B", stream.read(2))
        if prefix != 0xFF:
            raise ValueError("a damaged header")
        while marker == 0xFF:
            (marker,) = struct.unpack("B", stream.read(1))
        if marker in _JPEG_ALONE:
            continue
        (length,) = struct.unpack(">H", stream.read(2))
        if marker in _JPEG_FRAMES:
            _, height, width = struct.unpack(">BHH", stream.read(5))
            return width, height
        if length < 2 or marker in (0xD9, 0xDA):
            raise ValueError("no size before the pixels")
        stream.seek(length - 2, 1)
    raise ValueError("no size before the pixels")


class _Tiff:
    """Walks the directories of a TIFF file, one a page."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size = stream, size
        self._fields = self._numbers = 0
        stream.seek(0)
        head = stream.read(16)
        self._order = "<" if head[:2] == b"II" else ">"
        (version,) = struct.unpack(self._order + "H", head[2:4])
        self._big = version == 43
        self._first: int = struct.unpack(
            self._order + ("Q" if self._big else "I"), head[8:16] if self._big else head[4:8]
        )[0]

    def pages(self) -> list[tuple[int, int]]:
        """Columns and rows of each page."""
        sizes: list[tuple[int, int]] = []
        seen: set[int] = set()
        place = self._first
        while place:
            if place in seen or place >= self._size or len(sizes) >= _MAX_PAGES:
                raise ValueError("a directory of pages that leads astray")
            seen.add(place)
            size, place = self._page(place)
            sizes.append(size)
        if not sizes:
            raise ValueError("no page")
        return sizes

    def _page(self, place: int) -> tuple[tuple[int, int], int]:
        """Columns and rows of the page at a place in the file, and the place of the next."""
        long, entry_bytes = ("Q", 20) if self._big else ("I", 12)
        self._stream.seek(place)
        (count,) = self._unpack("Q" if self._big else "H")
        self._fields += count
        if not 1 <= count <= _MAX_ENTRIES or self._fields > _MAX_FIELDS:
            raise ValueError(f"a page of {count} fields")
        block = self._stream.read(count * entry_bytes)
        (following,) = self._unpack(long)
        fields: dict[int, tuple[int, ...]] = {}
        for start in range(0, len(block), entry_bytes):
            tag, kind, length = struct.unpack_from(f"{self._order}HH{long}", block, start)
            value = block[start + entry_bytes - struct.calcsize(f"={long}") : start + entry_bytes]
            fields[tag] = self._values(kind, length, value, wanted=tag)
        return self._checked(fields), following

    def _values(self, kind: int, length: int, value: bytes, *, wanted: int) -> tuple[int, ...]:
        """Whole numbers of a field that matters; of others only whether they lie in the file."""
        byte_count = _FIELD_BYTES.get(kind, 1) * length
        if byte_count > len(value):
            (offset,) = struct.unpack(self._order + ("Q" if self._big else "I"), value)
            if offset + byte_count > self._size:
                raise ValueError("a field beyond the end of the file")
        code = {3: "H", 4: "I", 13: "I", 16: "Q"}.get(kind)
        if code is None or wanted not in _MATTERS:
            return ()
        self._numbers += length
        if self._numbers > _MAX_VALUES:
            raise ValueError("far too many pieces of pages")
        if byte_count > len(value):
            self._stream.seek(offset)
            value = self._stream.read(byte_count)
        return struct.unpack_from(f"{self._order}{length}{code}", value)

    def _checked(self, fields: dict[int, tuple[int, ...]]) -> tuple[int, int]:
        width, height = (fields.get(tag, ()) for tag in (_WIDTH, _HEIGHT))
        if len(width) != 1 or len(height) != 1:
            raise ValueError("a page without a size")
        for offsets, counts in ((_STRIP_OFFSETS, _STRIP_BYTES), (_TILE_OFFSETS, _TILE_BYTES)):
            starts, lengths = fields.get(offsets, ()), fields.get(counts, ())
            if len(lengths) not in (0, len(starts)):
                raise ValueError("pieces of a page without a place")
            if any(a + n > self._size for a, n in zip(starts, lengths, strict=False)):
                raise ValueError("pixels beyond the end of the file")
        bits = sum(fields.get(_BITS, (1,))) or 1
        plain = fields.get(_COMPRESSION, (1,)) == (1,)
        if plain and width[0] * height[0] * bits // 8 > self._size:
            raise ValueError(f"{self._size} bytes for {width[0]} x {height[0]} pixels")
        return width[0], height[0]

    def _unpack(self, code: str) -> tuple[int, ...]:
        code = self._order + code
        return struct.unpack(code, self._stream.read(struct.calcsize(code)))


_MATTERS = (
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _STRIP_OFFSETS, _STRIP_BYTES,
    _TILE_OFFSETS, _TILE_BYTES,
)  # fmt: skip


def _bad(path: Path, expected: str, got: str) -> FileError:
    return FileError(str(path), expected=expected, got=got, cure="Copy or export it again.")
