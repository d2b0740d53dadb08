"""Where DICOM files lie: on the disk, in a folder tree, in a zip, behind a DICOMDIR.

A part is one DICOM file that can be read as a whole or from an offset, wherever it lies.
Nothing is unpacked to the disk. What a source promises is checked before it is believed:
a zip that would grow beyond reason, names that lead out of it, links out of a folder.
"""

from __future__ import annotations

import logging
import os
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medseg.core.errors import FileError

_LOG = logging.getLogger(__name__)

# Scans compress 2 to 20 times; beyond this, and beyond a size that matters, it is a bomb.
_MAX_RATIO = 300
_SMALL_BYTES = 64 << 20
_MAX_MEMBERS = 200_000
# One DICOM file that must be inflated in memory as a whole (.dcm.gz, deflated syntax).
_MAX_INFLATED_BYTES = 4 << 30
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_DEFLATED_SYNTAX = b"1.2.840.10008.1.2.1.99"


@dataclass(frozen=True, slots=True)
class Part:
    """One DICOM file.

    Attributes:
        path: The file on the disk; for a member of a zip, the zip.
        name: The file's own name, for messages.
        start: Where its bytes begin in ``path``.
        packed: Bytes that it takes in ``path``.
        size: Bytes that it has; for gzip and deflated data sets not known beforehand, -1.
        method: ``""`` as it is, ``"zip"`` raw deflate, ``"gzip"``, ``"dataset"`` for the
            transfer syntax *Deflated Explicit VR Little Endian*.
        crc: CRC-32 that a zip states, held against what is read as a whole; -1 unknown.
    """

    path: Path
    name: str
    start: int
    packed: int
    size: int
    method: str = ""
    crc: int = -1

    def read(self, offset: int = 0, length: int = -1) -> bytes:
        """Bytes from ``offset`` on, fewer than ``length`` where the file ends before.

        Raises:
            OSError, EOFError, zlib.error: It cannot be read.
        """
        data = self._inflated(offset, length) if self.method else self._plain(offset, length)
        if self.crc >= 0 and offset == 0 and length < 0 and zlib.crc32(data) != self.crc:
            raise EOFError("data that do not fit their checksum")
        return data

    def _plain(self, offset: int, length: int) -> bytes:
        room = max(0, self.packed - offset)
        with self.path.open("rb") as stream:
            stream.seek(self.start + offset)
            return stream.read(room if length < 0 else min(room, length))

    def _inflated(self, offset: int, length: int) -> bytes:
        limit = _MAX_INFLATED_BYTES if self.size < 0 else self.size
        if self.size < 0:
            limit = min(limit, self.packed * 1040 + 1024)
        end = limit if length < 0 else min(limit, offset + length)
        if self.method == "dataset":
            return _plain_dataset(self._raw(self.packed), end)[offset:end]
        engine = zlib.decompressobj(31 if self.method == "gzip" else -15)
        # For a header a little is enough; deflate never makes data longer by more than this.
        raw = self._raw(end + end // 16 + 4096)
        data = engine.decompress(raw, end + 1 if end == limit else end)
        if len(data) < end < limit and len(raw) < self.packed:
            raise EOFError("compressed data of a strange kind")
        if len(data) > limit:
            raise EOFError(f"more than the {limit} bytes that it promised")
        if end == limit and not engine.eof:
            raise EOFError("compressed data that end early")
        return data[offset:end]

    def _raw(self, length: int) -> bytes:
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            return stream.read(min(self.packed, length))


def _plain_dataset(raw: bytes, end: int) -> bytes:
    """A file of the deflated transfer syntax as one of Explicit VR Little Endian (PS3.5 A.5)."""
    head = meta_end(raw)
    meta = raw[:head].replace(_DEFLATED_SYNTAX, b"1.2.840.10008.1.2.1\0\0\0")
    return meta + zlib.decompressobj(-15).decompress(raw[head:], max(1, end - head))


def meta_end(raw: bytes) -> int:
    """Where the file meta information (group 0002, always Explicit VR Little Endian) ends."""
    position = 132
    while raw[position : position + 2] == b"\x02\x00" and position + 8 <= len(raw):
        if raw[position + 4 : position + 6] in (b"OB", b"UN", b"OW", b"SQ", b"UT", b"UC", b"UR"):
            position += 12 + int.from_bytes(raw[position + 8 : position + 12], "little")
        else:
            position += 8 + int.from_bytes(raw[position + 6 : position + 8], "little")
    return min(position, len(raw))


def is_dicom(head: bytes) -> bool:
    """Whether bytes look like the start of a DICOM file, also of one without a preamble."""
    if head[128:132] == b"DICM":
        return True
    group, element = head[:2], head[2:4]
    # Old files begin with group 0002 or 0008 at once, in either byte order.
    if group in (b"\x08\x00", b"\x02\x00"):
        return len(head) > 8 and element[1:] == b"\0" and head[3:4] == b"\0" and element[0] < 0x20
    return group in (b"\0\x08", b"\0\x02") and element[:1] == b"\0" and head[4:6].isalpha()


def list_parts(source: Path) -> list[Part]:
    """All files of a source that may be DICOM: a file, a folder, a zip or a DICOMDIR.

    Raises:
        FileError: It is missing, cannot be opened, or is a zip that must not be trusted.
    """
    try:
        if source.is_dir():
            return _in_folder(source)
        head = _head_of(source)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise FileError(str(source), expected="DICOM files", got=reason) from error
    if head.startswith(b"PK"):
        return _in_zip(source)
    return [part_of(source)]


def part_of(path: Path) -> Part:
    """One file on the disk."""
    size = path.stat().st_size
    return Part(path, path.name, 0, size, size)


def listed_parts(directory: Path, names: list[tuple[str, ...]]) -> list[Part]:
    """The files that a DICOMDIR refers to, as far as they are there.

    Args:
        directory: The DICOMDIR.
        names: For each file, the parts of its path below the DICOMDIR's folder.

    Raises:
        FileError: A name leads out of the folder, or none of the files is there.
    """
    home = directory.parent.resolve()
    found, missing = [], 0
    for parts in names:
        try:
            target = home.joinpath(*parts).resolve()
            inside, there = target.is_relative_to(home), target.is_file()
        except (OSError, ValueError):
            # A name that no file can have.
            inside, there = True, False
        if not inside or ".." in parts:
            raise FileError(
                str(directory),
                expected="files below its own folder",
                got="a name that leads out of it",
                cure="Do not trust this medium; read the folder itself.",
            )
        if there:
            found.append(part_of(target))
        else:
            missing += 1
    if names and not found:
        raise FileError(
            str(directory),
            expected="the files that it lists",
            got=f"none of {len(names)}",
            cure="Copy the whole medium, not the DICOMDIR alone.",
        )
    if missing:
        _LOG.warning("%s: %d of %d listed files are missing", directory, missing, len(names))
    return found


def _head_of(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(132)


def _in_folder(folder: Path) -> list[Part]:
    home = folder.resolve()
    found, left_out = [], 0
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for entry in sorted(files):
            path = Path(root, entry)
            if entry.startswith("."):
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                left_out += 1
            elif path.is_file():
                found.append(part_of(path))
    if left_out:
        _LOG.warning("%s: %d links that lead out of the folder are left out", folder, left_out)
    return found


def _in_zip(archive: Path) -> list[Part]:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, struct.error) as error:
        raise FileError(
            str(archive), expected="a whole zip file", got=str(error), cure="Copy it again."
        ) from error
    _refuse_bomb(archive, members)
    parts = []
    with archive.open("rb") as stream:
        for member in members:
            _refuse_escape(archive, member)
            name = PurePosixPath(member.filename).name
            if not name.startswith("."):
                # Negative in a damaged list; then it is found out below.
                stream.seek(max(0, member.header_offset))
                raw = stream.read(_LOCAL_HEADER.size)
                parts.append(_zip_part(archive, raw, member=member, name=name))
    return parts


def _zip_part(archive: Path, raw: bytes, *, member: zipfile.ZipInfo, name: str) -> Part:
    # Where the bytes begin stands in the member's own header alone.
    damaged = len(raw) < _LOCAL_HEADER.size or not raw.startswith(b"PK\x03\x04")
    method = {zipfile.ZIP_STORED: "", zipfile.ZIP_DEFLATED: "zip"}.get(member.compress_type)
    if damaged or method is None or member.flag_bits & 1:
        what = "encryption" if member.flag_bits & 1 else "a compression other than deflate"
        raise FileError(
            str(archive),
            expected="a plain zip file",
            got="a damaged member" if damaged else what,
            cure="Zip the files again, without encryption.",
        )
    fields = _LOCAL_HEADER.unpack(raw)
    start = member.header_offset + _LOCAL_HEADER.size + fields[9] + fields[10]
    sizes = member.compress_size, member.file_size
    return Part(archive, name, start, *sizes, method=method, crc=member.CRC)


def _refuse_bomb(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    packed = sum(member.compress_size for member in members)
    promised = sum(member.file_size for member in members)
    # Members that share their bytes are the trick of the best known zip bombs.
    overlapping = packed > archive.stat().st_size
    swollen = promised > _SMALL_BYTES and promised > _MAX_RATIO * max(1, packed)
    if overlapping or swollen or len(members) > _MAX_MEMBERS:
        raise FileError(
            str(archive),
            expected="a zip of scans",
            got=f"{len(members)} members that promise {promised} bytes from {packed}",
            cure="It looks like a zip bomb; unpack it by hand if you trust it.",
        )


def _refuse_escape(archive: Path, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    outside = path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1])
    if outside or stat.S_ISLNK(member.external_attr >> 16):
        raise FileError(
            str(archive),
            expected="files inside the zip",
            got="a link" if not outside else "a name that leads out of it",
            cure="Do not trust this file.",
        )
