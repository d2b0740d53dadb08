"""Readers that fail as C++ does, for the worker process of the tests."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from medseg.core.labels import LabelSet
from medseg.core.scan import Scan
from medseg.io import isolated
from medseg.io.formats import read_scan
from medseg.io.guarded import mask_as_scan
from tests.phantoms import lopsided_geometry


def read_or_fail(path: Path, *, series: str | None = None) -> Scan:
    """Read a scan, but for names that tell how the reader dies."""
    _fail(Path(path).name.split(".")[0])
    return read_scan(path, series=series)


def killed_once(path: Path, *, series: str | None = None) -> Scan:
    """Read a scan; the first of all reads is killed, as where memory is short."""
    flag = Path(os.environ["MEDSEG_TEST_FLAG"])
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return read_scan(path, series=series)


def mask_or_fail(path: Path, *, image: Path | None, labels: LabelSet | None) -> Scan:
    """Read a mask, but for names that tell how the reader dies."""
    _fail(Path(path).name.split(".")[0])
    return mask_as_scan(path, image=image, labels=labels)


def pixels_fail(path: Path, how: str) -> Scan:
    """Dies, or raises, when the voxels are asked for."""
    scan = read_scan(path)

    def load() -> np.ndarray:
        _fail(how)
        return scan.voxels()

    return Scan(scan.geometry, scan.channels, load)


def talking(path: Path) -> Scan:
    """Prints, as some C++ libraries do, and logs."""
    print("noise")  # noqa: T201
    os.write(1, b"{\n")
    logging.getLogger("medseg.io.somewhere").warning("told %d", 7)
    logging.getLogger("medseg.io.somewhere").debug("whispered")
    return read_scan(path)


def strange(layout: str) -> Scan:
    """Voxels in an odd layout of memory."""
    values = np.arange(2 * 11 * 8 * 6, dtype=">f8" if layout == "big endian" else "<i4")
    array = values.reshape(2, 11, 8, 6)
    if layout == "backwards":
        array = array[:, ::-1, :, ::-1]
    elif layout == "gaps":
        array = np.repeat(array, 2, axis=2)[:, :, ::2]
    elif layout == "one value":
        array = np.broadcast_to(np.int16(5), (2, 11, 8, 6))
    return Scan(lopsided_geometry((11, 8, 6)), ("a", "b"), lambda: array)


def loaded_modules() -> Scan:
    """Fails with the names of what this process has loaded."""
    raise LookupError(" ".join(sorted({name.split(".")[0] for name in sys.modules})))


def _fail(how: str) -> None:
    if how == "abort":
        os.abort()
    if how == "segfault":
        ctypes.string_at(0)
    if how == "exit":
        os._exit(3)
    if how == "hang":
        time.sleep(60)
    if how == "fault":
        raise ZeroDivisionError("by\nzero")


_NAMES = ("read_or_fail", "pixels_fail", "talking", "strange", "loaded_modules")


def worker_with_faults(**readers: str) -> str:
    """How to start a worker that knows the readers of this file by their names.

    Args:
        **readers: What of this file stands in for a reader of the worker's own table.
    """
    table = {name: (__name__, name) for name in _NAMES}
    table |= {reader: (__name__, name) for reader, name in readers.items()}
    return isolated._START.replace(
        "from medseg.io.isolated import serve; serve()",
        f"from medseg.io import isolated; isolated._READERS.update({table!r}); isolated.serve()",
    )
