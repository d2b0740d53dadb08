"""Memory that a training step frees stays with the process, for the next step to take."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

# mallopt(3) of the GNU C library.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = -1
# Where the library's own rule ends once large blocks were freed: from 32 MB a block is a mapping
# of its own, and 64 MB at the end of the heap are given back. 65 536 mappings are its default.
_USUAL = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
_SPACIOUS = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER}
_SPARING = {_MMAP_THRESHOLD: _USUAL[_MMAP_THRESHOLD], _TRIM_THRESHOLD: _NEVER}
_TURNS = Lock()
_holders = 0


@contextmanager
def freed_memory_kept(device_type: str, *, spacious: bool = True) -> Iterator[None]:
    """Large blocks that are freed in the block below are taken again, not given back.

    On a CPU each step makes and frees the same hundreds of megabytes. The GNU C library gives
    them back to the system, which then has to hand out zeroed pages again: 20 000 page faults a
    step, about a tenth of its time. What is free at the end is given back then. With another C
    library, or where the step runs on a GPU, nothing changes.

    Args:
        device_type: Of the device that steps run on.
        spacious: There is memory to spare. Steps with blocks above 32 MB then take up to half as
            much again, since few freed blocks fit the next; if not, those are given back.
    """
    library = _gnu_library() if device_type == "cpu" else None
    if library is None:
        yield
        return
    # The settings are the whole process's: the last one that leaves takes them back.
    global _holders
    with _TURNS:
        _holders += 1
        if _holders == 1:
            _set(library, _SPACIOUS if spacious else _SPARING)
    try:
        yield
    finally:
        with _TURNS:
            _holders -= 1
            if _holders == 0:
                _set(library, _USUAL)
                library.malloc_trim(0)


def _set(library: ctypes.CDLL, values: dict[int, int]) -> None:
    for parameter, value in values.items():
        library.mallopt(parameter, value)


@cache
def _gnu_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
