"""The pipeline around the network: it never waits where it need not.

While the network works on one case, the next is read and prepared, and the one before is
finished and written. At most three cases are in memory for one device, and one more for
each further device. Cases that are too small to fill a CPU go through the network two at
a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import psutil

from medseg.workflows import reading
from medseg.workflows.cases import Job
from medseg.workflows.work import Opened, Ready, Work, Written, explained

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.05
_MOST_READERS = 4


@dataclass(frozen=True)
class Started:
    """A case is being read."""

    case: str


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        case: Its id.
        error: None where it is done.
        files: What was written: the mask, its sidecar, the scan.
        seconds: Of each phase: read, prepare, segment, finish, write.
        peak_memory_bytes: The most that the whole process held while the case was in work.
        warnings: What was logged about it.
        provenance: As in the sidecar.
    """

    case: str
    error: Exception | None
    files: tuple[Path, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    warnings: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)


class _Case:
    """A case on its way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []
        self.peak_bytes = 0
        self.small = False
        self.ready: Ready | Opened | None = None


class Pipeline:
    """Runs cases through the stages; iterate over it once for what happens.

    Contract: use it with ``with``, which ends all threads and workers. Iterating gives a
    :class:`Started` and later an :class:`Outcome` for each job, these in the order in which
    they end. After an exception in between, ``stop`` and then ``rest`` give what was ready.

    Args:
        work: The stages.
        jobs: The cases.
    """

    def __init__(self, work: Work, jobs: Sequence[Job]) -> None:
        self._work, self._total, self._jobs = work, len(jobs), iter(jobs)
        self._events: SimpleQueue[Started | Outcome | BaseException] = SimpleQueue()
        self._state = threading.Condition()
        self._waiting: list[_Case] = []
        self._in_flight: list[_Case] = []
        self._busy: list[list[_Case]] = [[] for _ in work.models]
        self._stopping = False
        devices = len(work.models)
        self._lanes = [n for n, model in enumerate(work.models) for _ in range(_lanes_of(model))]
        self._room = 2 + devices
        self._readers = [reading.ScanReader() for _ in range(min(devices, _MOST_READERS))]
        self._reading = len(self._readers)
        self._writer = ThreadPoolExecutor(len(self._readers), thread_name_prefix="medseg-write")
        self._threads = [
            *(self._thread(self._read_all, reader) for reader in self._readers),
            *(self._thread(self._run_lane, device) for device in self._lanes),
        ]
        self._watch = _Watch(self._in_flight)

    def __enter__(self) -> Self:
        self._watch.start()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __iter__(self) -> Iterator[Started | Outcome]:
        left = self._total
        while left:
            event = self._events.get()
            if isinstance(event, BaseException):
                raise event
            left -= isinstance(event, Outcome)
            yield event

    def stop(self) -> None:
        """Begin nothing more. What is being written is written whole, all else is dropped."""
        with self._state:
            self._stopping = True
            self._state.notify_all()
        # The reader closes before its thread is waited for, which may hang in a codec.
        for reader in self._readers:
            reader.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._writer.shutdown()
        self._watch.stop()

    def rest(self) -> Iterator[Outcome]:
        """Outcomes that nobody took before ``stop``."""
        while True:
            try:
                event = self._events.get_nowait()
            except Empty:
                return
            if isinstance(event, Outcome):
                yield event

    def _thread(self, target: Any, argument: Any) -> threading.Thread:
        def run() -> None:
            try:
                target(argument)
            except BaseException as error:  # noqa: BLE001 - a fault here would hang the others
                self._events.put(error)

        return threading.Thread(target=run, daemon=True)

    # Reading

    def _read_all(self, reader: reading.ScanReader) -> None:
        with reader:
            while (job := self._next_job()) is not None:
                case = _Case(job[0])
                with self._state:
                    self._in_flight.append(case)
                self._events.put(Started(case.name))
                self._read_one(reader, case, job)
        with self._state:
            self._reading -= 1
            self._state.notify_all()

    def _next_job(self) -> Job | None:
        with self._state:
            self._state.wait_for(lambda: self._stopping or self._has_room())
            return None if self._stopping else next(self._jobs, None)

    def _has_room(self) -> bool:
        extra = len(self._lanes) - len(self._work.models)
        if extra and all(case.small for case in self._in_flight if case.ready is not None):
            return len(self._in_flight) < self._room + extra
        return len(self._in_flight) < self._room

    def _read_one(self, reader: reading.ScanReader, case: _Case, job: Job) -> None:
        try:
            with self._watch.phase(case, "read"):
                opened = self._work.read(reader, job)
            with self._watch.phase(case, "prepare"):
                case.ready = self._work.prepare(opened)
            case.small = self._work.is_small(case.ready)
        except Exception as error:  # noqa: BLE001 - one case must not stop the others
            if not self._stopping:
                self._end(case, error)
            return
        with self._state:
            self._waiting.append(case)
            self._state.notify_all()

    # The network

    def _run_lane(self, device: int) -> None:
        while (case := self._take(device)) is not None:
            self._infer_one(case, device)

    def _infer_one(self, case: _Case, device: int) -> None:
        ready, made = case.ready, None
        assert ready is not None
        try:
            with self._watch.phase(case, "segment"):
                made = self._work.infer(ready, device=device, before_tiles=self._go_on)
        except Exception as error:  # noqa: BLE001 - one case must not stop the others
            if not self._stopping:
                self._end(case, error)
        with self._state:
            self._busy[device].remove(case)
            self._state.notify_all()
            if isinstance(ready, Ready) and not isinstance(made, Written | None):
                if not self._stopping:
                    self._writer.submit(self._write_one, case, ready, made)
                return
        if isinstance(made, Written):
            case.seconds |= made.seconds
            self._end(case, None, made)

    def _go_on(self) -> None:
        """Ends what the network does in the middle of a scan, once nobody wants it."""
        if self._stopping:
            raise RuntimeError("the pipeline has stopped")

    def _take(self, device: int) -> _Case | None:
        """The next case, once this device has room for it; None at the end."""
        with self._state:
            while not self._stopping:
                if self._waiting and self._fits(self._waiting[0], device):
                    case = self._waiting.pop(0)
                    self._busy[device].append(case)
                    return case
                if not self._reading and not self._waiting:
                    return None
                self._state.wait()
        return None

    def _fits(self, case: _Case, device: int) -> bool:
        """A device takes one case, or small ones together."""
        busy = self._busy[device]
        return not busy or (case.small and all(other.small for other in busy))

    # Writing

    def _write_one(self, case: _Case, ready: Ready, classes: NDArray[Any]) -> None:
        try:
            with self._watch.phase(case, "finish"):
                result = self._work.finish(ready, classes)
            with self._watch.phase(case, "write"):
                written = self._work.write(case.name, ready, result)
        except Exception as error:  # noqa: BLE001 - one case must not stop the others
            self._end(case, error)
        else:
            self._end(case, None, written)

    def _end(self, case: _Case, error: Exception | None, written: Written | None = None) -> None:
        if error is not None:
            _log.debug("case %s", case.name, exc_info=error)
            # Its frames hold the arrays of the case.
            error = explained(error).with_traceback(None)
            error.__cause__ = error.__context__ = None
        case.ready = None
        with self._state:
            self._in_flight.remove(case)
            self._state.notify_all()
        self._events.put(
            Outcome(
                case.name, error, tuple(written.files if written else ()), case.seconds,
                case.peak_bytes, tuple(case.warnings), written.provenance if written else {},
            )
        )  # fmt: skip


class _Watch(logging.Handler):
    """Times the phases of cases, hears what is logged about them, samples the memory."""

    def __init__(self, in_flight: list[_Case]) -> None:
        super().__init__(logging.WARNING)
        self._in_flight, self._process = in_flight, psutil.Process()
        self._here, self._over = threading.local(), threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def start(self) -> None:
        logging.getLogger("medseg").addHandler(self)
        self._sampler.start()

    def stop(self) -> None:
        logging.getLogger("medseg").removeHandler(self)
        self._over.set()
        if self._sampler.is_alive():
            self._sampler.join()

    @contextmanager
    def phase(self, case: _Case, name: str) -> Iterator[None]:
        started, self._here.case = time.perf_counter(), case
        try:
            yield
        finally:
            self._here.case = None
            case.seconds[name] = round(time.perf_counter() - started, 4)
            self._look()

    def emit(self, record: logging.LogRecord) -> None:
        case = getattr(self._here, "case", None)
        if case is not None:
            case.warnings.append(record.getMessage())

    def _sample(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        held_bytes = int(self._process.memory_info().rss)
        for case in tuple(self._in_flight):
            case.peak_bytes = max(case.peak_bytes, held_bytes)


def _lanes_of(model: Any) -> int:
    """How many small cases a device takes at a time."""
    return 2 if model.device == "cpu" and (psutil.cpu_count(logical=False) or 1) > 1 else 1
