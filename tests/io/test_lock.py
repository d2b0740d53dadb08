"""A lock is held by one, and free again when its holder has gone, however it went."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medseg.core.errors import OutputError
from medseg.io import lock
from medseg.io.atomic import this_process
from medseg.io.lock import Holder, Lock, holder_of

_HOLD = """
import sys, time
from pathlib import Path
from medseg.io.lock import Lock
held = Lock.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def taken(path: Path, *, believe: bool = True) -> Lock:
    held = Lock.take(path, believe=believe)
    assert held is not None
    return held


def gone_process() -> str:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    return f"{this_process().partition('-')[0]}-{child.pid}"


def test_one_holds_it_and_its_file_says_who(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert holder_of(path) is None
    with taken(path) as held:
        assert held.before == Holder()
        assert Lock.take(path) is None
        who = holder_of(path)
        assert who is not None
        assert who.process == this_process()
        assert str(who).startswith(f"process {who.pid} on ")
    assert holder_of(path) is None
    assert path.is_file()
    other = taken(path)
    other.release(remove=True)
    other.release(remove=True)
    assert not path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks")
def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert Lock.take(path) is None
        assert (who := holder_of(path)) is not None
        assert who.pid == child.pid
        child.kill()
    assert holder_of(path) is None
    with taken(path) as held:
        assert held.before.pid == child.pid


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks")
def test_a_lock_that_was_removed_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between opening the file and locking it, its holder removes it: a lock of that file
    # would be one that nobody else sees.
    path, real = tmp_path / "lock", lock._lock_file
    first = taken(path)
    calls: list[int] = []

    def slow(file: int) -> bool | None:
        calls.append(file)
        if len(calls) == 1:
            first.release(remove=True)
        return real(file)

    monkeypatch.setattr(lock, "_lock_file", slow)
    second = taken(path)
    assert len(calls) == 2
    assert path.is_file()
    assert Lock.take(path) is None
    second.release()


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a network disk: who holds it stands in the file.
    monkeypatch.setattr(lock, "_lock_file", lambda file: None)
    path = tmp_path / "lock"
    with taken(path):
        assert holder_of(path) is not None
        assert Lock.take(path) is None
        taken(path, believe=False).release()
    assert holder_of(path) is None
    gone = gone_process()
    path.write_text(json.dumps({"process": gone, "at_s": time.time()}))
    with taken(path) as held:
        assert held.before.process == gone
    # Of another machine nobody can tell.
    path.write_text(json.dumps({"process": "00000000-1", "at_s": time.time()}))
    assert holder_of(path) is not None
    assert Lock.take(path) is None
    for strange in ("[]", "{", '{"since": 3, "more": 4}'):
        path.write_text(strange)
        assert holder_of(path) is None
        taken(path).release()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(OutputError, match=r"writing .*lock"):
        Lock.take(tmp_path / "lock")
    assert holder_of(tmp_path / "lock") is None
