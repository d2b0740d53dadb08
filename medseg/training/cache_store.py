"""A preprocessed case as a folder: compressed chunks on disk, of which a patch reads its own.

::

    CASE/
      image.b2nd    (C, I, J, K) float32, 12 of 23 bits of the mantissa: exact to 2.5e-4
      label.b2nd    (I, J, K) uint8 or uint16
      places.npy    (n, 3) voxels, index by index
      note.json     what it was made from, shapes, where in places.npy each index begins

The chunks are blosc2's b2nd, LZ4 after a shuffle of bits. What blosc2 can keep beside numbers
(pickled objects, expressions) is refused when a file is opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import FileError

# Of float32's 23 bits: noise fills the others, and noise cannot be compressed.
_MANTISSA_BITS = 12
# What is unpacked at once, and what is packed together. Of single slices no more than one.
_BLOCK, _CHUNK = (32, 32, 32), (128, 128, 128)
_THIN_BLOCK, _THIN_CHUNK = (64, 64, 1), (256, 256, 16)
NOTE = "note.json"


class StoredArray:
    """An array in a file, of which only the chunks that are asked for are read.

    Indexing with slices gives a NumPy array, ``numpy.asarray`` the whole.

    Args:
        path: A ``.b2nd`` file.
        shape: Of the array.
        dtype: Of its numbers.
        use: Kept as long as the array: the mark that its cache is in use.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], *, use: object = None
    ) -> None:
        self.path, self.shape, self.dtype, self.use = path, shape, dtype, use

    def __getitem__(self, key: Any) -> NDArray[Any]:
        array = self._opened()
        try:
            return np.asarray(array[key])
        except (OSError, RuntimeError) as error:
            raise damaged(self.path, str(error)) from error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self[...]
        return whole if dtype is None else whole.astype(dtype)

    def _opened(self) -> Any:
        # Opened for each patch, in a tenth of a millisecond: threads share no state, and a
        # thousand cases need no thousand open files. Not mapped, so that a file that is cut
        # short while a run works is an error and no crash.
        import blosc2

        try:
            array = blosc2.open(str(self.path), mode="r", deserialize="safe")
        except (OSError, RuntimeError, ValueError) as error:
            raise damaged(self.path, str(error)) from error
        if not isinstance(array, blosc2.NDArray) or array.shape != self.shape:
            raise damaged(self.path, "something else")
        return array


class Places(Mapping[int, NDArray[np.int32]]):
    """Voxels of each index of a label, (n, 3) each, read when they are asked for.

    Args:
        path: ``places.npy``.
        table: Of each index where it begins and ends.
    """

    def __init__(self, path: Path, table: Mapping[int, tuple[int, int]]) -> None:
        self._path, self._table = path, dict(table)

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        start, stop = self._table[index]
        try:
            rows = np.load(self._path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise damaged(self._path, str(error)) from error
        return np.asarray(rows[start:stop])

    def __iter__(self) -> Iterator[int]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


@dataclass(frozen=True)
class StoredCase:
    """What lies in a case's folder."""

    image: StoredArray
    label: StoredArray
    places: Places
    note: dict[str, Any]

    @cached_property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        return sum(self.note["bytes"].values())


def write_case(
    folder: Path, image: NDArray[np.float32], label: NDArray[Any], *, places: NDArray[np.int32],
    made_from: dict[str, Any], thin: bool = False,
) -> None:  # fmt: skip
    """Write a case into an empty folder; its note comes last.

    Args:
        folder: Empty.
        image: (C, I, J, K).
        label: (I, J, K) uint8 or uint16.
        places: Rows (index, i, j, k), index by index.
        made_from: Plain JSON for the note.
        thin: It will be read in single slices.
    """
    write_array(folder / "image.b2nd", image, thin=thin)
    write_array(folder / "label.b2nd", label, thin=thin)
    np.save(folder / "places.npy", places[:, 1:])
    values, firsts = np.unique(places[:, 0], return_index=True)
    ends = [*firsts[1:].tolist(), len(places)]
    note = {
        "made_from": made_from,
        "image": list(image.shape),
        "label": label.dtype.name,
        "places": {
            str(int(value)): [int(start), int(end)]
            for value, start, end in zip(values, firsts, ends, strict=True)
        },
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    (folder / NOTE).write_text(json.dumps(note), encoding="utf-8")


def read_case(folder: Path, *, use: object = None) -> StoredCase | None:
    """Open a case; None where there is none, or one that was cut short.

    Args:
        folder: Of the case.
        use: Kept as long as the case: the mark that its cache is in use.
    """
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in note["bytes"]}
        if sizes != note["bytes"]:
            return None
        shape = tuple(int(side) for side in note["image"])
        table = {int(index): (int(a), int(b)) for index, (a, b) in note["places"].items()}
        kind = np.dtype(note["label"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return StoredCase(
        StoredArray(folder / "image.b2nd", shape, np.dtype(np.float32), use=use),
        StoredArray(folder / "label.b2nd", shape[1:], kind, use=use),
        Places(folder / "places.npy", table),
        note,
    )


def write_array(path: Path, array: NDArray[Any], *, thin: bool) -> None:
    """Write one array in compressed chunks.

    Args:
        path: ``.b2nd``.
        array: Of three axes and more; float32 loses the end of its mantissa.
        thin: It will be read in single slices.
    """
    import blosc2

    filters, settings = [blosc2.Filter.BITSHUFFLE], [0]
    if array.dtype == np.float32:
        filters.insert(0, blosc2.Filter.TRUNC_PREC)
        settings.insert(0, _MANTISSA_BITS)
    sides, leading = array.shape[-3:], (1,) * (array.ndim - 3)
    chunk, block = (_THIN_CHUNK, _THIN_BLOCK) if thin else (_CHUNK, _BLOCK)
    chunks = leading + tuple(map(min, sides, chunk))
    # Blocks are filled up at the edges: alike in size they hold hardly more than voxels.
    blocks = leading + tuple(map(_even_part, chunks[-3:], block))
    packed = blosc2.asarray(
        np.ascontiguousarray(array), chunks=chunks, blocks=blocks,
        cparams={
            "codec": blosc2.Codec.LZ4, "clevel": 5, "filters": filters, "filters_meta": settings,
            "nthreads": 1,
        },
    )  # fmt: skip
    # Written at once: blosc2 itself writes a file in many small parts, which takes longer than
    # packing a small scan, and lets no other thread work meanwhile.
    path.write_bytes(packed.to_cframe())


def _even_part(side: int, most: int) -> int:
    """The size of the fewest parts, all alike and of at most ``most``, that cover a side."""
    return -(-side // -(-side // most))


def damaged(path: Path, got: str) -> FileError:
    """What to tell of a case that cannot be read."""
    return FileError(
        str(path),
        expected="a case of the cache",
        got=got,
        cure="Go on with --resume: what is missing or damaged is preprocessed again.",
    )
