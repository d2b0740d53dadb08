from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from medseg.core.errors import OutputError
from medseg.io.atomic import whole_file, write_bytes, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_appears_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "mask.nii.gz"
    with whole_file(path) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
        assert temporary.name.endswith(".nii.gz")
        assert temporary.parent == path.parent
    assert path.read_bytes() == b"half"
    assert names(path.parent) == ["mask.nii.gz"]


def test_what_stood_there_stays_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_text(path, "old")

    def write_half() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["metrics.json"]


def test_replaces_in_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "first")
    write_text(path, "Läsion µ")
    assert path.read_bytes() == "Läsion µ".encode()
    write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"


def test_permissions_are_those_of_a_plain_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "ours", "")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")]
    assert modes[0] == modes[1]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="writing"):
        write_text(tmp_path / "file" / "below.txt", "x")


_FILL = """
import resource, signal, sys
from pathlib import Path
from medseg.core.errors import OutputError
from medseg.io.atomic import write_bytes

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(Path(sys.argv[1]), bytes(5000))
except OutputError as error:
    sys.exit(0 if "Free some space" in str(error) else 4)
sys.exit(5)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits are those of POSIX")
def test_a_disk_that_fills(tmp_path: Path, repository: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"good")
    run = subprocess.run(
        [sys.executable, "-c", _FILL, str(path)],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert path.read_bytes() == b"good"
    assert names(tmp_path) == ["weights.safetensors"]
