"""Files appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from medseg.core.errors import OutputError

_TEMPORARY = re.compile(r"\.medseg-(?P<owner>[0-9a-f]{8}-\d+)-")
# The clocks of a file system and of a machine may differ by this much.
_CLOCKS_S = 2.0


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; move it into place when the block ends well.

    The temporary name keeps the suffixes (writers choose the format by them). On any
    error it is removed, and what stood at ``path`` before stays.

    Raises:
        OutputError: The folder cannot be made or written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".medseg-{this_process()}-",
            suffix="".join(path.suffixes[-2:]),
            dir=path.parent,
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _settle(temporary)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"writing {path}",
            got=error.strerror or str(error),
            cure="Free some space or choose another --out; what was written before is kept.",
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``out``; move it into place when the block ends well.

    Raises:
        OutputError: The folder cannot be made or written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".medseg-{this_process()}-", dir=out.parent))
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)
        yield temporary
        if out.is_dir():
            out.rmdir()
        temporary.replace(out)
    except OSError as error:
        raise OutputError(
            f"writing {out}",
            got=error.strerror or str(error),
            cure="Free some space or choose another --out; nothing was left half done.",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, in UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a binary file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def this_process() -> str:
    """Who writes: a word for this machine (or container), and the process id."""
    return f"{_machine()}-{os.getpid()}"


def remove_leftovers(folder: Path, *, dead: Collection[str] = ()) -> int:
    """Remove what a killed process left of whole files and folders below a folder.

    Args:
        folder: Searched with all that lies below it.
        dead: Processes that are known to have ended, as :func:`this_process` named them; of
            others, those of this machine that are gone count. Files of other machines stay.

    Returns:
        How many were removed.
    """
    removed = 0
    for root, folders, names in os.walk(folder):
        for name in (*names, *folders):
            match = _TEMPORARY.match(name)
            if match is None:
                continue
            path = Path(root, name)
            with suppress(OSError):
                owner, written_s = match["owner"], path.stat().st_mtime
                if owner in dead or is_gone(owner, written_s):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    removed += 1
    return removed


def is_gone(owner: str, at_s: float) -> bool:
    """Whether a process of this machine that ran at some time has ended; False if unknown.

    Args:
        owner: As :func:`this_process` named it.
        at_s: A time at which it ran, in seconds since 1970: numbers are given again.
    """
    import psutil

    machine, _, number = owner.partition("-")
    if machine != _machine():
        return False
    try:
        return bool(psutil.Process(int(number)).create_time() > at_s + _CLOCKS_S)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


@cache
def _machine() -> str:
    # Containers may share a name but count their processes apart.
    space = ""
    with suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _settle(path: Path) -> None:
    """Bring the file to the disk, with the permissions that a plain ``open`` would give."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
