from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.cli.app import run
from tests.phantoms import write_msd_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_msd_dataset(tmp_path / "data [x]", cases=6, shape=(24, 20, 16))


def test_a_sound_dataset(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(folder)]) == 0
    assert "6 cases): 0 errors, 0 warnings, 0 notes" in capsys.readouterr().out


def test_errors_end_in_3(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    (folder / "imagesTr" / "case_003.nii.gz").write_bytes(b"")
    assert run(["check", str(folder), "--out", str(tmp_path / "out")]) == 3
    shown = capsys.readouterr().out
    assert "unreadable" in shown
    assert "1 errors" in shown
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["check.html", "check.json"]


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "imagesTr" / "case_003.nii.gz").unlink()
    assert run(["check", str(folder), "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert [(f["kind"], f["case"]) for f in told["findings"]] == [("missing-file", "case_003")]


def test_fix(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "imagesTr" / "case_003.nii.gz").unlink()
    out = tmp_path / "out"
    assert run(["check", str(folder), "--fix", "--out", str(out)]) == 3
    assert "1 cases left out" in capsys.readouterr().out
    assert run(["check", str(out)]) == 0


def test_nothing_can_start(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    assert run(["check", str(tmp_path / "nowhere")]) == 2
    assert run(["check", str(folder), "--fix"]) == 2
    told = capsys.readouterr().err
    assert "no such file or folder" in told
    assert "Traceback" not in told
