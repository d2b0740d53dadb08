"""Processes at work on one cache: a case is made by one of them, and none goes while it is read.

::

    CACHE/
      .making-CASE       held by the process that makes a case
      .reading-PROCESS   held by a process that makes or reads cases, as long as it has them
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from medseg.core.errors import OutputError
from medseg.io.atomic import this_process
from medseg.io.lock import Holder, Lock, holder_of

_MAKING, _READING = ".making-", ".reading-"
_numbers = count()


class InUse:
    """Says that a cache is in use, from when it is made until nobody refers to it.

    Args:
        folder: Of the cache. One that cannot be written is not marked: nobody can remove it.
    """

    def __init__(self, folder: Path) -> None:
        with suppress(OutputError):
            lock = Lock.take(folder / f"{_READING}{this_process()}-{next(_numbers)}")
            if lock is not None:
                weakref.finalize(self, lock.release, remove=True)


def users_of(folder: Path) -> list[Holder]:
    """Other processes that make or read cases of a cache now."""
    found = (holder_of(path) for path in sorted(folder.glob(f"{_READING}*")))
    return [one for one in found if one is not None and one.process != this_process()]


@contextmanager
def turn(home: Path) -> Iterator[bool]:
    """Whether it is this process's (and thread's) turn to make a case.

    Where the disk knows no locks it always is: a case made twice is the same case.

    Args:
        home: The folder of the case.

    Raises:
        OutputError: The cache cannot be written.
    """
    lock = Lock.take(home.with_name(_MAKING + home.name), believe=False)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release(remove=True)


def remove_stale(folder: Path) -> None:
    """Remove what processes that were killed left of their marks."""
    for pattern in (_MAKING, _READING):
        for path in folder.glob(f"{pattern}*"):
            with suppress(OutputError):
                lock = Lock.take(path)
                if lock is not None:
                    lock.release(remove=True)
