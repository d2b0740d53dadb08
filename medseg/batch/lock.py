"""One run at a time for a shard of a folder, also over network disks."""

from __future__ import annotations

from pathlib import Path

from medseg.core.errors import InputError
from medseg.io.lock import Holder, Lock, holder_of


def only_run(path: Path) -> Lock:
    """Take a shard's lock; its file stays when the lock is released.

    Raises:
        InputError: Another run holds it.
        OutputError: The file cannot be written.
    """
    lock = Lock.take(path)
    if lock is None:
        raise _in_use(path, holder_of(path) or Holder())
    return lock


def _in_use(path: Path, holder: Holder) -> InputError:
    return InputError(
        f"--out {path.parent.parent}",
        expected="no other run at work on it",
        got=str(holder),
        cure="Wait for it or stop it; runs side by side need --shard 1/2, --shard 2/2 and so on. "
        f"If it is over, remove {path}.",
    )
