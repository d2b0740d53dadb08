"""A file that one process holds at a time, also over network disks.

The system lets go of it when the process ends, however it ends. The file says who holds it;
where the disk knows no locks, that alone counts: a holder is over when its process is gone, and
one of another machine is believed.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import platform
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from medseg.core.errors import OutputError
from medseg.io.atomic import is_gone, this_process

if sys.platform != "win32":
    import fcntl

# A disk without file locks, as some network disks are.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_MOST_BYTES = 4096


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as its file says; empty where it says nothing.

    Attributes:
        process: As :func:`medseg.io.atomic.this_process` names it.
        pid: Number of the process on its machine.
        machine: Name of the machine.
        since: Date and time.
        at_s: The same, in seconds since 1970.
    """

    process: str = ""
    pid: int | str = "?"
    machine: str = "?"
    since: str = "?"
    at_s: float = 0.0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.machine}, since {self.since}"

    @property
    def is_over(self) -> bool:
        """Whether it is known to have ended."""
        return not self.process or is_gone(self.process, self.at_s)

    @classmethod
    def here(cls) -> Holder:
        """This process, now."""
        now = datetime.datetime.now(datetime.UTC)
        since = now.isoformat(timespec="seconds")
        return cls(this_process(), os.getpid(), platform.node(), since, now.timestamp())


class Lock:
    """A lock that is held: from :meth:`take`, until it is released.

    Attributes:
        path: The lock's file.
        before: Who held it before, and has ended.
    """

    def __init__(self, path: Path, file: int, before: Holder) -> None:
        self.path, self.before = path, before
        self._file: int | None = file

    @classmethod
    def take(cls, path: Path, *, believe: bool = True) -> Self | None:
        """Take a lock without waiting.

        Args:
            path: Of the lock; made where it is missing.
            believe: What counts where the disk knows no locks: True believes what the file says,
                False takes the lock.

        Returns:
            None where another holds it.

        Raises:
            OutputError: The file cannot be written.
        """
        while True:
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
                free = _lock_file(file)
            except OSError as error:
                raise _unwritable(path, error) from error
            if free and not _is_at(path, file):
                os.close(file)  # its holder removed it meanwhile
                continue
            holder = _holder(file)
            if free is None:
                free = not believe or holder.is_over
            if not free:
                os.close(file)
                return None
            try:
                _write(file, json.dumps(asdict(Holder.here())).encode())
            except OSError as error:
                os.close(file)
                raise _unwritable(path, error) from error
            return cls(path, file, holder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def release(self, *, remove: bool = False) -> None:
        """Let go; once is enough.

        Args:
            remove: Leave no file behind.
        """
        if self._file is None:
            return
        file, self._file = self._file, None
        with suppress(OSError):
            os.ftruncate(file, 0)
            if remove and sys.platform != "win32":
                # While it is held, so that nobody loses a lock that was just taken.
                self.path.unlink(missing_ok=True)
        os.close(file)
        if remove and sys.platform == "win32":
            with suppress(OSError):
                self.path.unlink(missing_ok=True)


def holder_of(path: Path) -> Holder | None:
    """Who holds a lock now; None if nobody does, or there is none. It is not touched."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        free, holder = _lock_file(file), _holder(file)
        return None if (holder.is_over if free is None else free) else holder
    except OSError:
        return None
    finally:
        os.close(file)


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False


def _write(file: int, text: bytes) -> None:
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)  # not pwrite, which Windows lacks
    os.write(file, text)


def _holder(file: int) -> Holder:
    with suppress(OSError, ValueError, TypeError, AttributeError):
        os.lseek(file, 0, os.SEEK_SET)
        held: dict[str, Any] = json.loads(os.read(file, _MOST_BYTES))
        known = {key: held[key] for key in held if key in Holder.__dataclass_fields__}
        return Holder(**known)
    return Holder()


def _lock_file(file: int) -> bool | None:
    """Lock it: True where it was free, False where not, None where the disk knows no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"writing {path}",
        got=error.strerror or str(error),
        cure="Free some space or choose another --out.",
    )
