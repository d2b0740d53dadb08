"""One run at a time for a shard of a folder, also over network disks."""

from __future__ import annotations

import datetime
import errno
import json
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from medseg.core.errors import InputError, OutputError
from medseg.io.atomic import is_gone, this_process

if sys.platform != "win32":
    import fcntl

# A disk without file locks, as some network disks are.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class Lock:
    """Held while a run works; the system lets go of it when the process ends, however it ends.

    The file says who holds it. Where the disk knows no locks, that alone counts: a run is over
    when its process is gone, and one of another machine is believed.

    Args:
        path: The lock's file. It stays when the lock is released.

    Raises:
        InputError: Another run holds it.
        OutputError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.before = ""  # the process that held it before and has ended
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            self._take()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            os.ftruncate(self._file, 0)
        os.close(self._file)

    def _take(self) -> None:
        free, holder = _lock_file(self._file), _holder(self._file)
        if not (_is_over(holder) if free is None else free):
            raise _in_use(self._path, holder)
        self.before = str(holder.get("process", ""))
        now = datetime.datetime.now(datetime.UTC)
        facts = {
            "process": this_process(),
            "pid": os.getpid(),
            "machine": platform.node(),
            "since": now.isoformat(timespec="seconds"),
            "at_s": now.timestamp(),
        }
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(facts).encode(), 0)
        except OSError as error:
            raise _unwritable(self._path, error) from error


def is_held(path: Path) -> bool:
    """Whether a run holds the lock now. It is not touched."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        free = _lock_file(file)
        return not (_is_over(_holder(file)) if free is None else free)
    except OutputError:
        return False
    finally:
        os.close(file)


def _is_over(holder: dict[str, Any]) -> bool:
    return not holder or is_gone(str(holder.get("process")), float(holder.get("at_s", 0)))


def _holder(file: int) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        held = json.loads(os.pread(file, 4096, 0))
        return held if isinstance(held, dict) else {}
    return {}


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
        raise _unwritable(Path("the lock of the ledger"), error) from error
    return True


def _in_use(path: Path, holder: dict[str, Any]) -> InputError:
    who = f"process {holder.get('pid', '?')} on {holder.get('machine', '?')}"
    return InputError(
        f"--out {path.parent.parent}",
        expected="no other run at work on it",
        got=f"{who}, since {holder.get('since', '?')}",
        cure="Wait for it or stop it; runs side by side need --shard 1/2, --shard 2/2 and so on. "
        f"If it is over, remove {path}.",
    )


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"writing {path}",
        got=error.strerror or str(error),
        cure="Free some space or choose another --out.",
    )
