"""NRRD and MetaImage through SimpleITK, and SimpleITK images as scans and back.

Our own code looks at the header first (``itk_header``): a crash in C++ cannot be caught.

SimpleITK is imported when a function needs it, so that NIfTI works without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import FileError, GeometryError
from medseg.core.geometry import Geometry
from medseg.core.results import Prediction
from medseg.core.scan import Scan
from medseg.io.atomic import whole_file
from medseg.io.itk_header import Promise, check_header, raw_voxels
from medseg.io.stream import BROKEN, check_memory, no_memory, read_slabs

ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")


def looks_like_itk(head: bytes) -> bool:
    """Whether the first bytes are those of an NRRD or MetaImage header."""
    return head.startswith(b"NRRD0") or head[:64].lstrip().startswith((b"ObjectType", b"NDims"))


def read_itk(path: Path) -> Scan:
    """Read an NRRD or MetaImage file: geometry now, voxels (C, I, J, K) later.

    Raises:
        FileError: The file is truncated, or of a type that is no scan (complex).
        GeometryError: The header places the voxels nowhere.
    """
    promise = check_header(path)
    sitk = _sitk()
    reader = _reader(path, sitk)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    _same_size(path, reader, promise)
    geometry, channels = _describe(reader, reader.GetNumberOfComponents(), str(path))

    def load() -> NDArray[Any]:
        # Once more: the file may have changed since, and ITK must not follow it then either.
        check_memory(str(path), 2 * check_header(path).voxel_bytes)
        try:
            return _voxels(_reader(path, sitk).Execute(), sitk)
        except (RuntimeError, MemoryError) as error:
            if "Failed to allocate memory" in str(error) or isinstance(error, MemoryError):
                raise no_memory(str(path), 2 * promise.voxel_bytes) from error
            raise _unreadable(path, error) from error

    return Scan(
        geometry,
        _numbered(channels),
        load,
        source=str(path),
        load_slabs=_slab_loader(path, geometry, channels),
    )


def _slab_loader(
    path: Path, geometry: Geometry, channels: int
) -> Callable[[Sequence[tuple[int, int]]], Iterator[NDArray[Any]]] | None:
    """How to read parts of the file where its voxels lie raw in one piece; else None."""
    try:
        raw = raw_voxels(path)
    except BROKEN as error:
        raise _unreadable(path, error) from error
    if raw is None or raw.shape != geometry.shape or channels != 1:
        return None

    def load_slabs(cuts: Sequence[tuple[int, int]]) -> Iterator[NDArray[Any]]:
        shape = (*raw.shape, 1)
        native = raw.dtype.newbyteorder("=")
        try:
            for slab in read_slabs(raw.path, cuts, offset=raw.offset, shape=shape, dtype=raw.dtype):
                yield np.moveaxis(slab.astype(native, copy=False), -1, 0)
        except BROKEN as error:
            raise _unreadable(path, error) from error

    return load_slabs


def scan_from_sitk(image: Any) -> Scan:
    """Take a SimpleITK image (2D, 3D, 4D or of vectors) as a scan; channels come first."""
    sitk = _sitk()
    geometry, channels = _describe(image, image.GetNumberOfComponentsPerPixel(), "SimpleITK image")
    return Scan(
        geometry, _numbered(channels), lambda: _voxels(image, sitk), source="SimpleITK image"
    )


def to_sitk(prediction: Prediction) -> Any:
    """Put a mask into a ``SimpleITK.Image`` with the scan's placement; 2D only for 2D NIfTI."""
    sitk = _sitk()
    forms = prediction.forms
    flat = forms is not None and len(forms.grid_shape) == 2
    origin, spacing, direction = prediction.geometry.to_lps()
    image = sitk.GetImageFromArray(np.ascontiguousarray(prediction.labels.transpose(2, 1, 0)))
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    if flat:
        square = np.reshape(direction, (3, 3))
        if abs(square[:2, 2]).max() < 1e-6 and abs(square[2, :2]).max() < 1e-6:
            return image[:, :, 0]
    return image


def write_itk_mask(path: Path, prediction: Prediction) -> None:
    """Write a mask as NRRD or MetaImage in one file, whole or not at all, compressed.

    Raises:
        OutputError: The file cannot be written.
    """
    sitk = _sitk()
    image = to_sitk(prediction)
    with whole_file(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            raise OSError(_last_line(error)) from error


def _sitk() -> ModuleType:
    import SimpleITK

    module: ModuleType = SimpleITK
    return module


def _numbered(channels: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(channels))


def _describe(image: Any, components: int, source: str) -> tuple[Geometry, int]:
    """Geometry and number of channels of an image or of a reader that knows its header."""
    size = tuple(int(length) for length in image.GetSize())
    dims = len(size)
    extra = size[3] if dims == 4 else 1
    if dims not in (2, 3, 4) or (extra > 1 and components > 1):
        raise FileError(
            source,
            expected="2D, 3D, or 3D with channels",
            got=f"size {size} with {components} components",
            cure="Save one time point or one channel set to a file.",
        )
    used = min(dims, 3)
    direction = np.reshape(image.GetDirection(), (dims, dims))[:used, :used]
    try:
        geometry = Geometry.from_lps(
            size[:used],
            image.GetOrigin()[:used],
            image.GetSpacing()[:used],
            tuple(direction.ravel()),
        )
    except GeometryError as error:
        raise GeometryError(
            f"{source}: {error.what}", expected=error.expected, got=error.got, cure=error.cure
        ) from error
    return geometry, extra * components


def _voxels(image: Any, sitk: ModuleType) -> NDArray[Any]:
    """(C, I, J, K) from a SimpleITK image; a view of the copy that SimpleITK makes."""
    array = np.asarray(sitk.GetArrayFromImage(image))
    dims = image.GetDimension()
    if array.dtype.kind not in "biuf":
        raise FileError(
            "voxels",
            expected="whole or real numbers",
            got=str(array.dtype),
            cure="Save the magnitude.",
        )
    if image.GetNumberOfComponentsPerPixel() > 1:
        channels_first = np.moveaxis(array, -1, 0)
    else:
        channels_first = array if dims == 4 else array[None]
    if dims == 2:
        channels_first = channels_first[:, None]
    return channels_first.transpose(0, 3, 2, 1)


def _reader(path: Path, sitk: ModuleType) -> Any:
    """A reader for the one format that the content shows: no other parser sees the file."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with path.open("rb") as stream:
        reader.SetImageIO("NrrdImageIO" if stream.read(4) == b"NRRD" else "MetaImageIO")
    return reader


def _same_size(path: Path, reader: Any, promise: Promise) -> None:
    """Refuse a header that ITK reads as another size than our own parser."""
    values = reader.GetNumberOfComponents() * math.prod(int(size) for size in reader.GetSize())
    if values > promise.voxel_bytes:
        raise FileError(
            str(path),
            expected=f"at most {promise.voxel_bytes} values",
            got=f"size {reader.GetSize()} with {reader.GetNumberOfComponents()} components",
            cure="Copy or export it again.",
        )


def _unreadable(path: Path, error: Exception) -> FileError:
    if not path.exists():
        return FileError(str(path), expected="a scan", got="no such file")
    return FileError(
        str(path),
        expected="a whole NRRD or MetaImage file",
        got=_last_line(error),
        cure="Copy or export it again, with all files that belong to it.",
    )


def _last_line(error: Exception) -> str:
    """What ITK says went wrong, without its object addresses and source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else "no reason given"
    return text.split("): ", 1)[-1]
