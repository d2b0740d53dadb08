"""NRRD and MetaImage headers, checked before ITK's C++ sees the file.

A crash in C++ cannot be caught, and a header decides how much memory ITK takes and which
files it opens. So our own parser, stricter than ITK's, first looks at what both need: sizes,
element type, encoding, and where the voxels are. Everything else is left to ITK.

References: the NRRD0005 format (Teem), MetaIO (ITK).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg.core.errors import FileError
from medseg.io.stream import MAX_DEFLATE_RATIO, is_gzip

_MAX_HEADER_BYTES = 1 << 20
_MAX_FILES = 1 << 16
_SEQUENCE = re.compile(r"%0?(\d{0,2})d")

_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8",
                     "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16",
                     "int16_t", "ushort", "unsigned short", "unsigned short int", "uint16",
                     "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32",
                     "uint32_t", "float"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long",
                     "signed long long int", "int64", "int64_t", "ulonglong",
                     "unsigned long long", "unsigned long long int", "uint64", "uint64_t",
                     "double"), 8),
}  # fmt: skip
_META_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4,
    "MET_LONG": 4, "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}  # fmt: skip
# For reading by slab: types whose width is the same for every writer, by NumPy's names.
_NRRD_KINDS = {
    "i1": ("signed char", "int8", "int8_t"), "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"), "u4": ("uint", "unsigned int", "uint32",
                                                            "uint32_t"),
    "f4": ("float",), "f8": ("double",),
}  # fmt: skip
_META_KINDS = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
# A second one of these could tell ITK another size than it told us.
_NRRD_FIELDS = ("dimension", "sizes", "type", "encoding", "data file", "datafile")
_META_FIELDS = (
    "ndims", "dimsize", "elementtype", "elementnumberofchannels", "binarydata",
    "compresseddata", "compresseddatasize", "headersize",
)  # fmt: skip


@dataclass(frozen=True)
class Promise:
    """What a header says that the file holds.

    Attributes:
        voxel_bytes: Of all voxels and components, unpacked.
        held_bytes: The most that the files can unpack to.
    """

    voxel_bytes: int
    held_bytes: int


@dataclass(frozen=True)
class RawVoxels:
    """Where the voxels of a plain volume of one component lie, the first axis fastest.

    Attributes:
        path: The file that holds them.
        offset: Where they begin.
        shape: As the header orders it.
        dtype: With the byte order of the file.
    """

    path: Path
    offset: int
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]


def raw_voxels(path: Path) -> RawVoxels | None:
    """Where the voxels lie, when they lie there raw, in one piece; None for all else.

    The header must have passed :func:`check_header`.
    """
    with path.open("rb") as stream:
        head = stream.read(_MAX_HEADER_BYTES)
    found = _raw_nrrd(path, head) if head.startswith(b"NRRD") else _raw_meta(path, head)
    if found is None or is_gzip(found.path):
        return None
    needed = found.offset + math.prod(found.shape) * found.dtype.itemsize
    return found if found.path.stat().st_size >= needed else None


def _raw_nrrd(path: Path, head: bytes) -> RawVoxels | None:
    end = re.search(rb"\r?\n\r?\n", head)
    fields, listed = _nrrd_fields(path, head[: end.start()] if end else head)
    code = next((k for k, names in _NRRD_KINDS.items() if fields.get("type", "") in names), "")
    sizes = fields.get("sizes", "").split()
    order = {"little": "<", "big": ">"}.get(fields.get("endian", ""), "|")
    skips = any(name.replace(" ", "") in ("byteskip", "lineskip") for name in fields)
    known = code and (order != "|" or code.endswith("1"))
    if not known or len(sizes) != 3 or skips or listed or fields.get("encoding") != "raw":
        return None
    outside = fields.get("data file", fields.get("datafile"))
    if outside is None:
        return None if end is None else _raw(path, end.end(), sizes, order + code)
    (file, *more) = _files(path, outside, listed)
    return None if more else _raw(file, 0, sizes, order + code)


def _raw_meta(path: Path, head: bytes) -> RawVoxels | None:
    fields, listed, start = _meta_fields(path, head)
    code = _META_KINDS.get(fields.get("elementtype", ""), "")
    sizes = fields.get("dimsize", "").split()
    said = fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb"))
    order = "|" if said is None else ">" if said.lower().startswith(("t", "1")) else "<"
    plain = (
        fields.get("elementnumberofchannels", "1") == "1"
        and fields.get("headersize", "0") == "0"
        and fields.get("binarydata", "true").lower().startswith(("t", "1"))
        and not fields.get("compresseddata", "false").lower().startswith(("t", "1"))
    )
    known = code and (order != "|" or code.endswith("1"))
    if not known or not plain or len(sizes) != 3 or listed:
        return None
    outside = fields["elementdatafile"]
    if outside.upper() == "LOCAL":
        return _raw(path, start, sizes, order + code)
    (file, *more) = _files(path, outside, listed)
    return None if more else _raw(file, 0, sizes, order + code)


def _raw(path: Path, offset: int, sizes: list[str], code: str) -> RawVoxels:
    a, b, c = (int(size) for size in sizes)
    return RawVoxels(path, offset, (a, b, c), np.dtype(code))


def check_header(path: Path) -> Promise:
    """Refuse an NRRD or MetaImage file whose header ITK must not follow.

    Raises:
        FileError: A field is missing, doubled or out of range; voxels are promised that the
            files cannot hold; a file of voxels is missing or lies outside the folder.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(_MAX_HEADER_BYTES)
        promise = _nrrd(path, head) if head.startswith(b"NRRD") else _meta(path, head)
    except FileNotFoundError as error:
        raise FileError(str(path), expected="a scan", got="no such file") from error
    except (OSError, RuntimeError) as error:  # a name too long, links in a circle
        raise _bad(path, "files that can be opened", str(error)) from error
    if promise.voxel_bytes > promise.held_bytes:
        raise FileError(
            str(path),
            expected=f"{promise.voxel_bytes} bytes of voxels as the header says",
            got=f"files of {promise.held_bytes} bytes at most",
            cure="Copy or export it again, with all files that belong to it.",
        )
    return promise


def _nrrd(path: Path, head: bytes) -> Promise:
    end = re.search(rb"\r?\n\r?\n", head)
    fields, listed = _nrrd_fields(path, head[: end.start()] if end else head)
    sizes = _numbers(path, "sizes", fields.get("sizes", ""))
    if _numbers(path, "dimension", fields.get("dimension", "")) != [len(sizes)]:
        raise _bad(path, "as many sizes as dimensions", f"sizes {sizes}")
    kind = fields.get("type", "")
    if kind not in _NRRD_BYTES:
        raise _bad(path, "whole or real numbers", f"the NRRD type '{kind}'")
    encoding = fields.get("encoding", "")
    outside = fields.get("data file", fields.get("datafile"))
    if outside is None:
        if end is None:
            raise _bad(path, "an empty line between header and voxels", "none")
        held = [(path, path.stat().st_size - end.end())]
    else:
        held = [(file, file.stat().st_size) for file in _files(path, outside, listed)]
    values = math.prod(sizes)
    return Promise(
        values * _NRRD_BYTES[kind], _capacity(path, encoding, held, width=_NRRD_BYTES[kind])
    )


def _nrrd_fields(path: Path, text: bytes) -> tuple[dict[str, str], list[str]]:
    """The fields by their names, and the lines after ``data file: LIST``."""
    fields: dict[str, str] = {}
    lines = text.decode("latin-1").splitlines()[1:]
    for number, line in enumerate(lines):
        if line.startswith("#") or ":=" in line or ":" not in line:
            continue
        name, value = (part.strip() for part in line.split(":", 1))
        if name.lower() in fields and name.lower() in _NRRD_FIELDS:
            raise _bad(path, f"one field '{name.lower()}'", "two")
        fields[name.lower()] = value if "file" in name.lower() else value.lower()
        if name.lower() in ("data file", "datafile") and value.upper().startswith("LIST"):
            return fields, [entry.strip() for entry in lines[number + 1 :] if entry.strip()]
    return fields, []


def _meta(path: Path, head: bytes) -> Promise:
    fields, listed, start = _meta_fields(path, head)
    sizes = _numbers(path, "DimSize", fields.get("dimsize", ""))
    if _numbers(path, "NDims", fields.get("ndims", "")) != [len(sizes)]:
        raise _bad(path, "as many sizes in DimSize as NDims", f"DimSize {sizes}")
    kind = fields.get("elementtype", "")
    if kind not in _META_BYTES:
        raise _bad(path, "whole or real numbers", f"the ElementType '{kind}'")
    channels = _numbers(path, "channels", fields.get("elementnumberofchannels", "1"))
    if len(channels) != 1:
        raise _bad(path, "one number of channels", f"{channels}")
    binary = fields.get("binarydata", "true").lower().startswith(("t", "1"))
    packed = fields.get("compresseddata", "false").lower().startswith(("t", "1"))
    encoding = "gzip" if packed else "raw" if binary else "ascii"
    outside = fields["elementdatafile"]
    if outside.upper() == "LOCAL":
        held = [(path, path.stat().st_size - start)]
    else:
        held = [(file, file.stat().st_size) for file in _files(path, outside, listed)]
    values = math.prod(sizes) * channels[0]
    return Promise(
        values * _META_BYTES[kind], _capacity(path, encoding, held, width=_META_BYTES[kind])
    )


def _meta_fields(path: Path, head: bytes) -> tuple[dict[str, str], list[str], int]:
    """The fields by their names, the lines after ``ElementDataFile``, and where voxels start."""
    fields: dict[str, str] = {}
    position = 0
    while "elementdatafile" not in fields:
        end = head.find(b"\n", position)
        if end < 0:
            raise _bad(path, "a header that ends with ElementDataFile", "none")
        line = head[position:end].decode("latin-1").strip()
        position = end + 1
        name, *value = (part.strip() for part in re.split("[=:]", line, maxsplit=1))
        if line and not value:
            raise _bad(path, "lines of 'Name = value'", "another line in the header")
        if name.lower() in fields and name.lower() in _META_FIELDS:
            raise _bad(path, f"one field '{name}'", "two")
        fields[name.lower()] = value[0] if value else ""
    listed = []
    if fields["elementdatafile"].upper().startswith("LIST"):
        lines = head[position:].decode("latin-1").splitlines()
        listed = [line.strip() for line in lines if line.strip()]
    return fields, listed, position


def _numbers(path: Path, name: str, text: str) -> list[int]:
    words = text.split()
    if not 1 <= len(words) <= 5 or not all(re.fullmatch(r"[0-9]{1,12}", word) for word in words):
        raise _bad(path, f"whole numbers in '{name}'", f"'{text[:40]}'" if text else "none")
    numbers = [int(word) for word in words]
    if min(numbers) < 1:
        raise _bad(path, f"numbers of at least 1 in '{name}'", str(numbers))
    return numbers


def _capacity(path: Path, encoding: str, held: list[tuple[Path, int]], *, width: int) -> int:
    """The most bytes that the files can unpack to."""
    size = sum(max(0, count) for _, count in held)
    if encoding == "raw":
        # MetaIO unpacks a .raw.gz beside a header by itself.
        packed = any(file != path and is_gzip(file) for file, _ in held)
        return size * (MAX_DEFLATE_RATIO if packed else 1)
    if encoding in ("gz", "gzip"):
        return size * MAX_DEFLATE_RATIO
    if encoding in ("txt", "text", "ascii"):
        # A digit and a space at least, but for the last.
        return (size + 1) // 2 * width
    if encoding == "hex":
        return size // 2
    raise FileError(
        str(path),
        expected="raw, gzip, ascii or hex encoding",
        got=f"'{encoding}'",
        cure="Save it raw or with gzip.",
    )


def _files(path: Path, named: str, listed: list[str]) -> list[Path]:
    """The files of voxels that a header names; each must be there and lie in its folder."""
    words = named.split()
    if words and words[0].upper() == "LIST":
        names = listed
    elif _SEQUENCE.search(named):
        names = _sequence(path, words)
    else:
        names = [named]
    if not 1 <= len(names) <= _MAX_FILES:
        raise _bad(path, f"1 to {_MAX_FILES} files of voxels", str(len(names)))
    folder = path.parent.resolve()
    files = []
    for name in names:
        if not name.isprintable():
            raise _bad(path, "a file name", "one that no file can have")
        file = path.parent / name
        if not file.resolve().is_relative_to(folder):
            raise FileError(
                str(path),
                expected="its voxels in the same folder",
                got="a header that names a file elsewhere",
                cure="Put both into one folder and mend the name in the header.",
            )
        if not file.is_file():
            raise FileError(
                str(path),
                expected=f"its voxels in {name} beside it",
                got="no such file",
                cure="Copy all files that belong to it into one folder.",
            )
        files.append(file)
    return files


def _sequence(path: Path, words: list[str]) -> list[str]:
    """``slice%03d.raw 1 30 1``: a pattern, the first number, the last and the step."""
    numbers = [int(word) for word in words[1:4] if re.fullmatch(r"[0-9]{1,6}", word)]
    if words[0].count("%") != 1 or len(numbers) != 3 or numbers[2] < 1:
        raise _bad(path, "a file name, or a pattern with first, last and step", " ".join(words))
    counted = range(numbers[0], numbers[1] + 1, numbers[2])
    return [words[0] % number for number in counted[: _MAX_FILES + 1]]


def _bad(path: Path, expected: str, got: str) -> FileError:
    return FileError(str(path), expected=expected, got=got, cure="Copy or export it again.")
