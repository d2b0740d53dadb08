"""Reading in a process of its own: a crash in a C++ reader or codec cannot be caught.

One worker process reads scan after scan. It loads this floor alone, no deep learning. When it
dies or hangs, that scan has failed, and the next gets a new worker.

The two talk through pipes. A request is a line of JSON that names a reader of a fixed table and
holds its arguments. An answer is a line of JSON and the bytes of the voxels behind it. So
nothing that comes from a worker, which a damaged file may have led astray, names any code.
Voxels go from its memory straight into an array of ours. (Shared memory would save one copy,
but containers often have 64 MB of it, and a process that writes to more is killed.)
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from importlib import import_module
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from medseg.core import errors
from medseg.core.errors import FileError, MedsegError, ResourceError
from medseg.core.geometry import Geometry
from medseg.core.scan import NiftiForms, Scan
from medseg.core.slices import SlicePlaces
from medseg.io.stream import check_memory, no_memory
from medseg.io.wire import from_line, to_line

if sys.platform == "linux":
    import fcntl

_LOG = logging.getLogger("medseg")

#: A scan that takes longer than this, voxels included, counts as one that hangs.
LIMIT_S = 300.0
_LAST_BREATH_S = 2.0
_READY = b"ready\n"
_PIPE_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 24
# What a worker may be asked to call: module and function. They give a scan.
_READERS = {
    "scan": ("medseg.io.formats", "read_scan"),
    "series": ("medseg.io.dicom_series", "read_series"),
    "mask": ("medseg.io.guarded", "mask_as_scan"),
}
# The path of the parent, and nothing of the folder in which it was started.
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from medseg.io.isolated import serve; serve()"
)


class ReaderCrashError(FileError):
    """The worker died on a file. Perhaps not for its sake: it may have been killed."""


class IsolatedReader:
    """Reads scans in a worker process that may die.

    Contract: use it with ``with``; the worker is started by the first scan, and ends with
    the block whatever happens. One scan is read at a time; more threads than one wait.

    Args:
        limit_s: How long a scan may take before it counts as one that hangs.
    """

    def __init__(self, *, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._turn, self._state = threading.Lock(), threading.Lock()
        self._closed = False
        self._worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker, also in the middle of a scan; no other is started."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        with self._state:
            worker, self._worker = self._worker, None
        if worker is not None:
            _end(worker)

    def _present(self) -> subprocess.Popen[bytes]:
        with self._state:
            if self._closed:
                raise RuntimeError("the reader is closed")
            if self._worker is not None and self._worker.poll() is not None:
                # It died between two scans, for want of memory say.
                _end(self._worker)
                self._worker = None
            if self._worker is None:
                self._worker = _started()
            return self._worker

    def read(self, reader: str, *arguments: Any, source: str, **named: Any) -> Scan:
        """Call a reading function in the worker, and read the voxels there too.

        Args:
            reader: ``"scan"`` for :func:`medseg.io.formats.read_scan`, ``"series"`` for
                :func:`medseg.io.dicom_series.read_series`, ``"mask"`` for
                :func:`medseg.io.guarded.mask_as_scan`.
            *arguments: What the function takes.
            source: What to call the scan where the worker dies.
            **named: What the function takes by name.

        Returns:
            The scan, its voxels (C, I, J, K) in memory.

        Raises:
            ReaderCrashError: The reader crashed on this file.
            FileError: It took longer than the limit.
            MedsegError: As the function or reading the voxels raised it.
            RuntimeError: They raised something else; it is named.
        """
        request = to_line([reader, list(arguments), named, _LOG.getEffectiveLevel()])
        with self._turn:
            try:
                answer = self._ask(request, source)
            except BaseException:
                # Ctrl-C, or no memory: half an answer may still be on its way.
                self._drop()
                raise
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ask(self, request: bytes, source: str) -> Scan | Exception:
        worker, late = self._present(), threading.Event()

        def stop() -> None:
            late.set()
            worker.kill()

        watch = threading.Timer(self._limit_s, stop)
        watch.daemon = True
        watch.start()
        try:
            return _exchange(worker, request, source)
        except (OSError, EOFError, ValueError) as error:
            # Its end of the pipe is gone, and soon the worker: wait for what it died of.
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(_LAST_BREATH_S)
            raise _crashed(source, worker, self._limit_s if late.is_set() else None) from error
        finally:
            watch.cancel()


def _started() -> subprocess.Popen[bytes]:
    # No fork: threads and locks of this process would be copied in any state. No
    # multiprocessing: it would run the user's own script once more.
    command = [sys.executable, "-P", "-c", _START, json.dumps(sys.path)]
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    if worker.stdout is not None and sys.platform == "linux":
        # Sixteen times the usual: fewer turns between the two for each volume.
        with contextlib.suppress(OSError):
            fcntl.fcntl(worker.stdout.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    # No file is to blame where it does not come this far.
    if worker.stdout is None or worker.stdout.readline() != _READY:
        _end(worker)
        raise ResourceError(
            "the process that reads scans",
            expected="one that starts",
            got=_last_words(worker),
            cure="Run `medseg doctor`.",
        )
    return worker


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    worker.wait()


def _exchange(worker: subprocess.Popen[bytes], request: bytes, source: str) -> Scan | Exception:
    if worker.stdin is None or worker.stdout is None:
        raise EOFError("no pipes")
    worker.stdin.write(request)
    worker.stdin.flush()
    while True:
        line = worker.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError("no answer")
        answer = json.loads(line)
        if "log" in answer:
            level, text = answer["log"]
            _LOG.log(level, "%s", text)
        elif "error" in answer:
            return _error_of(answer["error"])
        elif "fault" in answer:
            return RuntimeError(answer["fault"])
        else:
            return _scan_of(answer, _received(worker.stdout, answer, source))


def _crashed(source: str, worker: subprocess.Popen[bytes], limit_s: float | None) -> FileError:
    kind, got = FileError, f"a reader that was still at it after {limit_s or 0:g} s"
    if limit_s is None:
        kind, got = ReaderCrashError, f"the reader crashed on this file ({_last_words(worker)})"
    return kind(
        source,
        expected="a file that can be read",
        got=got,
        cure="Copy or export it again, or convert it with another program.",
    )


def _last_words(worker: subprocess.Popen[bytes]) -> str:
    """The signal or the code with which it ended."""
    code = worker.poll()
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _error_of(fields: dict[str, str]) -> MedsegError:
    kind = getattr(errors, fields.pop("kind"), FileError)
    made: MedsegError = kind(fields.pop("what"), **fields)
    return made


def _received(stream: IO[bytes], answer: dict[str, Any], source: str) -> NDArray[Any]:
    """The voxels behind an answer, in the memory order that they had in the worker."""
    order, dtype = answer["order"], np.dtype(answer["dtype"])
    shape = [answer["shape"][axis] for axis in order]
    needed_bytes = math.prod(shape) * dtype.itemsize
    check_memory(source, needed_bytes)
    try:
        stored = np.empty(shape, dtype)
    except MemoryError as error:
        raise no_memory(source, needed_bytes) from error
    target = stored.reshape(-1).view(np.uint8).data
    filled = 0
    while filled < len(target):
        count = stream.readinto(target[filled : filled + _CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise EOFError("voxels that end early")
        filled += count
    return stored.transpose(np.argsort(order))


def _scan_of(answer: dict[str, Any], voxels: NDArray[Any]) -> Scan:
    forms, slices = answer["forms"], answer["slices"]
    a, b, c = answer["grid"]
    return Scan(
        Geometry((a, b, c), np.array(answer["affine_ras"], dtype=np.float64)),
        tuple(answer["channels"]),
        lambda: voxels,
        modality=answer["modality"],
        source=answer["source"],
        forms=None
        if forms is None
        else NiftiForms(
            forms["version"],
            {name: tuple(values) for name, values in forms["fields"].items()},
            tuple(forms["grid_shape"]),
        ),
        slices=None
        if slices is None
        else SlicePlaces(
            tuple(slices["places_k"]),
            tuple(slices["along_mm"]),
            tuple((x, y, z) for x, y, z in slices["positions_mm"]),
        ),
    )


def in_memory(scan: Scan) -> Scan:
    """The same scan with its voxels read, once.

    Raises:
        FileError: As :meth:`Scan.voxels`.
    """
    voxels = scan.voxels()
    return replace(scan, load=lambda: voxels, load_slabs=None)


# From here on: what the worker does.


class _ToParent(logging.Handler):
    """Sends what is logged to the parent, whose log it is."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        _tell(self._stream, {"log": [record.levelno, record.getMessage()]})


def serve() -> None:
    """Read scans for the parent until it closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    # What a library prints must not get between the answers.
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    stream.write(_READY)
    stream.flush()
    _LOG.handlers[:] = [_ToParent(stream)]
    _LOG.propagate = False
    while line := requests.readline():
        try:
            reader, arguments, named, level = from_line(line)
            _LOG.setLevel(level)
            module, function = _READERS[reader]
            _answer(stream, getattr(import_module(module), function)(*arguments, **named))
        except MedsegError as error:
            fields = {"what": error.what, "expected": error.expected, "got": error.got}
            kind = type(error).__name__
            _tell(stream, {"error": {"kind": kind, **fields, "cure": error.cure}})
        except BrokenPipeError:
            return
        except Exception as error:  # noqa: BLE001 - the parent tells it as a fault of ours
            _tell(stream, {"fault": f"{type(error).__name__}: {error}"})


def _tell(stream: IO[bytes], message: dict[str, Any]) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def _answer(stream: IO[bytes], scan: Scan) -> None:
    voxels = scan.voxels()
    # Sent as they lie in memory, so that no copy is made here.
    order = sorted(range(4), key=lambda axis: -abs(voxels.strides[axis]))
    stored = np.ascontiguousarray(voxels.transpose(order))
    forms, slices, grid = scan.forms, scan.slices, scan.geometry
    _tell(
        stream,
        {
            "shape": voxels.shape,
            "dtype": voxels.dtype.str,
            "order": order,
            "grid": grid.shape,
            "affine_ras": grid.affine_ras.tolist(),
            "channels": scan.channels,
            "modality": scan.modality,
            "source": scan.source,
            "forms": None if forms is None else vars(forms),
            "slices": None if slices is None else vars(slices),
        },
    )
    data = stored.reshape(-1).view(np.uint8).data
    for at in range(0, len(data), _CHUNK_BYTES):
        stream.write(data[at : at + _CHUNK_BYTES])
    stream.flush()
