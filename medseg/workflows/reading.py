"""Read the scans of a batch: what C++ parses, in a process that may die."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from medseg.core.plan import Plan
from medseg.core.scan import Scan
from medseg.io.dicom_studies import Study
from medseg.io.guarded import needs_worker
from medseg.io.isolated import LIMIT_S, IsolatedReader, ReaderCrashError, in_memory
from medseg.workflows import segment
from medseg.workflows.segment import ScanLike

_log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class ScanReader:
    """Reads one scan after another into memory; use it with ``with``.

    DICOM, ITK's formats and pictures go through an :class:`IsolatedReader`, since a crash in
    C++ cannot be caught; NIfTI, MGH and GIPL, which Python reads, stay in this process.

    Args:
        limit_s: How long a scan may take in the other process before it counts as one that
            hangs.
    """

    def __init__(self, *, limit_s: float = LIMIT_S) -> None:
        self._isolated, self._closed = IsolatedReader(limit_s=limit_s), False

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
        """End what is being read in another process; nothing more is read there."""
        self._closed = True
        self._isolated.close()

    def read(self, source: ScanLike, plan: Plan) -> Scan:
        """As ``segment.read``, with the voxels (C, I, J, K) read already.

        Raises:
            FileError: A reader crashed twice or hangs on a file, or the file cannot be read.
            MedsegError: As ``segment.read``.
        """
        return in_memory(segment.read(self._parts(source, plan), plan))

    def _parts(self, source: ScanLike, plan: Plan) -> ScanLike:
        """The source with what C++ would parse read already."""
        if isinstance(source, Mapping):
            return {name: self._parts(part, plan) for name, part in source.items()}
        if isinstance(source, Study):
            info = segment.wanted_series(source, plan)
            name = f"{source.path}, {info.name}"
            return self._twice("series", info, accept_gaps=source.accept_gaps, source=name)
        if isinstance(source, str | Path) and needs_worker(Path(source)):
            return self._twice("scan", Path(source), source=str(source))
        return source

    def _twice(self, reader: str, argument: Any, *, source: str, **named: Any) -> Scan:
        """Read once more after a crash: the worker may have been killed for another's sake."""
        try:
            return self._isolated.read(reader, argument, source=source, **named)
        except ReaderCrashError as error:
            if self._closed:
                raise
            _log.warning("%s It is read once more.", error)
            return self._isolated.read(reader, argument, source=source, **named)


def read_ahead(
    items: Iterable[T], read: Callable[[ScanReader, T], R]
) -> Generator[tuple[T, Future[R]], None, None]:
    """Yield each item with what is read of it; meanwhile the next is read, and no other.

    Closing the generator ends what is being read in another process.

    Args:
        items: In the order wanted; one more than is yielded is taken from it.
        read: Called in a thread, one item at a time.
    """
    # The reader closes before the pool waits for its thread, which may hang in a codec.
    with ThreadPoolExecutor(max_workers=1) as pool, ScanReader() as reader:
        waiting: tuple[T, Future[R]] | None = None
        try:
            for item in items:
                upcoming = item, pool.submit(read, reader, item)
                if waiting is not None:
                    yield waiting
                waiting = upcoming
            if waiting is not None:
                yield waiting
        finally:
            # After Ctrl-C nobody wants the next one.
            pool.shutdown(wait=False, cancel_futures=True)
