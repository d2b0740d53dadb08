from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.cli.app import run
from tests.phantoms import write_msd_dataset


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_msd_dataset(tmp_path / "a", cases=3, shape=(9, 7, 5))
    out = tmp_path / "b"
    assert run(["convert", str(folder), "--to", "nnunet", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["cases"], told["copied"], told["rewritten"]) == (3, 6, 0)
    assert (out / "imagesTr" / "case_001_0000.nii.gz").is_file()
    assert run(["convert", str(out), "--to", "table", "--out", str(tmp_path / "c"), "--link"]) == 0
    assert "3 cases from nnU-Net to table" in capsys.readouterr().out
    assert (tmp_path / "c" / "images" / "case_001.nii.gz").is_symlink()


def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_msd_dataset(tmp_path / "a", cases=3, shape=(9, 7, 5))
    assert run(["convert", str(folder), "--to", "zip", "--out", str(tmp_path / "b")]) == 2
    assert run(["convert", str(folder), "--to", "msd", "--out", str(folder)]) == 2
    assert "--out" in capsys.readouterr().err
