"""Arrays above memory: a raw file on the disk, read and written box by box.

The file has no name once it is open, so that its space comes back whatever ends the process.
It is read and written by position, not mapped, so that memory stays flat.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medseg.core.errors import OutputError

Box = tuple[slice, ...]
# What one call to the system costs, in the bytes that are moved in the same time.
_CALL_BYTES = 16_384
# No more than this is moved at a time where a box is not one run of the file.
_MAX_RUN_BYTES = 1 << 24


class ScratchArray:
    """An array on the disk, zero until it is written, gone when it is closed.

    Args:
        folder: Where its file lies; best on a disk, since ``/tmp`` may be memory.
        shape: Of any number of axes.
        dtype: Of its numbers.
        order: The axes as they lie in the file, the slowest first; None for C order. Boxes
            that are thin along the first of them are read and written fast.

    Raises:
        OutputError: The folder cannot be written, or has no room for it.

    Safe to read from several threads, and to write to different places from several.
    """

    def __init__(
        self,
        folder: Path,
        shape: Sequence[int],
        dtype: DTypeLike,
        *,
        order: Sequence[int] | None = None,
    ) -> None:
        self.shape = tuple(int(side) for side in shape)
        self.dtype = np.dtype(dtype)
        self.order = tuple(range(len(self.shape)) if order is None else order)
        self._stored = tuple(self.shape[axis] for axis in self.order)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free_bytes = shutil.disk_usage(folder).free
            if self.nbytes > free_bytes:
                raise _no_room(folder, self.nbytes, f"{free_bytes / 1e9:.3g} GB")
            # Without a name in the folder: nothing is left behind, also by ``kill -9``.
            self._file = tempfile.TemporaryFile(  # noqa: SIM115 - open until close()
                prefix=".medseg-", dir=folder, buffering=0
            )
            self._file.truncate(self.nbytes)
        except OSError as error:
            raise _no_room(folder, self.nbytes, error.strerror or str(error)) from error
        self._folder, self._handle = folder, self._file.fileno()
        # Whoever forgets it gives its space back all the same, without a warning.
        self._closing = weakref.finalize(self, self._file.close)
        self._writing = Lock()

    @property
    def nbytes(self) -> int:
        """Size of its file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, box: Box) -> NDArray[Any]:
        """The values in a box, one slice per axis, of step 1 and within the shape."""
        spans = [_span(box[axis], self.shape[axis]) for axis in self.order]
        values = np.empty([stop - start for start, stop in spans], self.dtype)
        for run in self._runs(spans):
            values[run.place] = self._pull(run)[run.inside]
        return np.transpose(values, np.argsort(self.order))

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Replace the values in a box; ``values`` have its shape.

        Raises:
            OutputError: The disk is full.
        """
        spans = [_span(box[axis], self.shape[axis]) for axis in self.order]
        turned = np.transpose(values, self.order)
        with self._writing:
            for run in self._runs(spans):
                block = np.ascontiguousarray(turned[run.place], self.dtype)
                if block.shape != run.shape:
                    # What lies between is read and written back: far fewer calls.
                    block, part = self._pull(run), block
                    block[run.inside] = part
                self._push(run, block)

    def close(self) -> None:
        """Give its space back."""
        self._closing()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _runs(self, spans: list[tuple[int, int]]) -> Iterator[_Run]:
        """Runs of the file that hold a box, cut where they would be long."""
        axis = self._run_axis(spans)
        tail = self._stored[axis + 1 :]
        row = math.prod(tail)
        deep = max(1, _MAX_RUN_BYTES // max(1, row * self.dtype.itemsize))
        first, last = spans[axis]
        origins = [start for start, _ in spans[:axis]]
        behind = tuple(slice(*span) for span in spans[axis + 1 :])
        for lead in product(*(range(*span) for span in spans[:axis])):
            place = 0
            for at, side in zip(lead, self._stored[:axis], strict=True):
                place = place * side + at
            head = tuple(at - origin for at, origin in zip(lead, origins, strict=True))
            for start in range(first, last, deep):
                stop = min(start + deep, last)
                yield _Run(
                    offset=(place * self._stored[axis] + start) * row * self.dtype.itemsize,
                    shape=(stop - start, *tail),
                    place=(*head, slice(start - first, stop - first)),
                    inside=(slice(None), *behind),
                )

    def _run_axis(self, spans: list[tuple[int, int]]) -> int:
        """The axis at which to cut a box into runs, so that the least time is lost.

        Many short runs cost calls; few long ones cost bytes that are not wanted.
        """
        sides = [stop - start for start, stop in spans]

        def cost(axis: int) -> int:
            calls = math.prod(sides[:axis])
            row_bytes = math.prod(self._stored[axis + 1 :]) * self.dtype.itemsize
            return calls * (_CALL_BYTES + sides[axis] * row_bytes)

        return min(range(len(sides)), key=cost)

    def _pull(self, run: _Run) -> NDArray[Any]:
        block = np.empty(run.shape, self.dtype)
        target = block.reshape(-1).view(np.uint8).data
        filled = 0
        while filled < len(target):
            count = os.preadv(self._handle, [target[filled:]], run.offset + filled)
            if not count:
                raise OutputError(f"scratch file in {self._folder}", got="its end too early")
            filled += count
        return block

    def _push(self, run: _Run, block: NDArray[Any]) -> None:
        source = block.reshape(-1).view(np.uint8).data
        done = 0
        try:
            while done < len(source):
                done += os.pwrite(self._handle, source[done:], run.offset + done)
        except OSError as error:
            raise _no_room(self._folder, self.nbytes, error.strerror or str(error)) from error


@dataclass(frozen=True)
class _Run:
    """Bytes that lie together, and which of them are wanted.

    Attributes:
        offset: Where they begin in the file.
        shape: Of the block, as stored.
        place: Where in the box, as stored, the wanted part belongs.
        inside: Which part of the block is wanted.
    """

    offset: int
    shape: tuple[int, ...]
    place: tuple[int | slice, ...]
    inside: tuple[slice, ...]


def _span(part: slice, side: int) -> tuple[int, int]:
    start, stop, step = part.indices(side)
    wanted = (part.start or 0, side if part.stop is None else part.stop)
    if step != 1 or (start, stop) != wanted or stop < start:
        raise IndexError(f"{part} does not lie within an axis of {side}")
    return start, stop


def _no_room(folder: Path, needed_bytes: int, got: str) -> OutputError:
    return OutputError(
        f"scratch file in {folder}",
        expected=f"{needed_bytes / 1e9:.3g} GB of free space",
        got=got,
        cure="Free some space or choose another --out.",
    )
