"""Scans and masks of many cases, read so that a crash in C++ ends one case and no more."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import MedsegError
from medseg.core.labels import LabelSet
from medseg.core.scan import Scan
from medseg.io.formats import read_by_python, read_mask, read_scan
from medseg.io.isolated import LIMIT_S, IsolatedReader


class GuardedReader:
    """Reads what C++ parses (DICOM, ITK's formats, pictures) in worker processes.

    Contract: use it with ``with``, inside that of the threads' pool, so that nothing hangs where
    Ctrl-C ends both. Any number of threads may read at once, and each gets a worker of its
    own, started by the first file that needs one. NIfTI, MGH and GIPL, which Python reads,
    stay in this process.

    Args:
        limit_s: How long a file may take in a worker before it counts as one that hangs.
    """

    def __init__(self, *, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._mine = threading.local()
        self._all: list[IsolatedReader] = []
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        for reader in self._all:
            reader.close()

    def scan(self, path: Path, *, series: str | None = None) -> Scan:
        """As :func:`medseg.io.formats.read_scan`.

        Raises:
            FileError: The reader crashed or hangs on this file.
            MedsegError: As ``read_scan``.
        """
        if not needs_worker(path):
            return read_scan(path, series=series)
        return self._worker().read("scan", path, series=series, source=str(path))

    def mask(
        self, path: Path, *, image: Path | None = None, labels: LabelSet | None = None
    ) -> tuple[NDArray[Any], Scan]:
        """As :func:`medseg.io.formats.read_mask`: values (I, J, K), and the scan they come as.

        Raises:
            FileError: The reader crashed or hangs on this file.
            MedsegError: As ``read_mask``.
        """
        if not needs_worker(path):
            return read_mask(path, image=image, labels=labels)
        scan = self._worker().read("mask", path, image=image, labels=labels, source=str(path))
        return scan.voxels()[0], scan

    def _worker(self) -> IsolatedReader:
        if not hasattr(self._mine, "reader"):
            self._mine.reader = IsolatedReader(limit_s=self._limit_s)
            self._all.append(self._mine.reader)
        reader: IsolatedReader = self._mine.reader
        if self._closed:
            reader.close()
        return reader


def needs_worker(path: Path) -> bool:
    """Whether a file is better read in a process that may die."""
    try:
        return not read_by_python(path)
    except MedsegError:
        # Reading it here will tell what is wrong.
        return False


def mask_as_scan(path: Path, *, image: Path | None, labels: LabelSet | None) -> Scan:
    """A mask whose label values are its only channel: what the worker sends of one."""
    values, scan = read_mask(path, image=image, labels=labels)
    voxels = np.asarray(values)[None]
    return replace(scan, channels=("0",), load=lambda: voxels, load_slabs=None)
