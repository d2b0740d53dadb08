"""``medseg measure``, ``preview``, ``mesh`` and ``contours``: exit codes and what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medseg.cli.app import run
from tests.phantoms import write_msd_dataset, write_nifti


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_msd_dataset(tmp_path / "data", cases=2)


def test_measure(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, masks = str(data / "imagesTr"), str(data / "labelsTr")
    assert run(["measure", images, masks, "--out", str(tmp_path / "table.csv")]) == 0
    assert "4 rows in" in capsys.readouterr().out
    assert run(["measure", images, masks, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 4
    write_nifti(data / "labelsTr" / "case_001.nii.gz", np.ones((3, 4, 5), np.uint8), np.eye(4))
    assert run(["measure", images, masks]) == 3
    assert run(["measure", images, str(tmp_path / "absent")]) == 2
    assert run(["measure", images, masks, "--labels", "spleen"]) == 2
    assert "spleen" in capsys.readouterr().err


def test_preview(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, masks = str(data / "imagesTr"), str(data / "labelsTr")
    assert run(["preview", images, masks, "--out", str(tmp_path / "p"), "--no-montage"]) == 0
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["case_000.png", "case_001.png"]
    assert run(["preview", images, masks, "--out", masks]) == 2
    assert "--out" in capsys.readouterr().err


def test_mesh(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = str(data / "labelsTr")
    assert run(["mesh", masks, "--out", str(tmp_path / "m"), "--format", "obj"]) == 0
    assert "4 files of 2 masks" in capsys.readouterr().out
    assert run(["mesh", masks, "--out", str(tmp_path / "m"), "--format", "fbx"]) == 2
    assert run(["mesh", masks, "--out", str(tmp_path / "m"), "--reduction", "1.5"]) == 2


def test_contours(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = str(data / "labelsTr")
    assert run(["contours", masks, "--out", str(tmp_path / "c"), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["cases"]) == ["case_000", "case_001"]
    assert run(["contours", masks, "--out", str(tmp_path / "c"), "--format", "geojson"]) == 2
    assert "--format json" in capsys.readouterr().err
