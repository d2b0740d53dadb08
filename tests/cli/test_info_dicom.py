"""The table of series that ``medseg info STUDY`` shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medseg.cli.app import run
from tests.dicom_objects import Roi, SegFile, write_rtstruct
from tests.dicom_phantoms import STUDY, Series, random_voxels


@pytest.fixture
def study(tmp_path: Path) -> Path:
    Series(random_voxels(), number=2, uid=f"{STUDY}.2").write(tmp_path / "a")
    gaps = Series(
        random_voxels(), number=3, uid=f"{STUDY}.3", places=[0, 1, 2, 4, 5, 6],
        tags={"SeriesDescription": "[bold] liver", "Modality": "MR", "ConvolutionKernel": "B30f"},
    )  # fmt: skip
    gaps.write(tmp_path / "b")
    return tmp_path


def test_table(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(study)]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["series", "modality", "description", "slices"]
    assert first.split()[:3] == ["2", "CT", "Abdomen"]
    assert "0.7 x 1.1 x 2.5" in first
    assert "even" in first
    assert "[bold] liver" in second
    assert "uneven gaps (2.5 mm x4, 5 mm x1)" in second
    assert "Doe" not in head + first + second


def test_json(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(study), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "study"
    first, second = facts["series"]
    assert (first["series"], first["slices"], first["reasons_against"]) == ("2", 6, [])
    assert first["spacing_mm"] == pytest.approx([0.7, 1.1, 2.5], abs=1e-4)
    assert (first["kernel"], second["kernel"]) == ("", "B30f")
    assert second["gaps"] == "2.5 mm x4, 5 mm x1"


def test_several_studies(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tags = {"StudyInstanceUID": f"{STUDY}.77"}
    Series(random_voxels(), number=2, uid=f"{STUDY}.77.2", tags=tags).write(study / "c")
    assert run(["info", str(study)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["study", "series"]
    assert [row.split()[:2] for row in rows] == [["1", "2"], ["1", "3"], ["2", "2"]]


def test_structures_of_masks(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series = Series(random_voxels(), number=2, uid=f"{STUDY}.2")
    whole = np.ones((13, 9, 6), dtype=bool)
    SegFile(series, {3: whole}, {3: "Liver"}).write(study / "seg.dcm")
    write_rtstruct(series, {1: Roi("point", [("POINT", [(1.0, 1.0, 1.0)])])}, study / "rt.dcm")
    assert run(["info", str(study)]) == 0
    shown = capsys.readouterr().out
    assert "mask seg.dcm: Liver (3)" in shown
    assert "mask rt.dcm:" in shown
    assert "structures with an outline" in shown
    assert run(["info", str(study), "--json"]) == 0
    masks = json.loads(capsys.readouterr().out)["masks"]
    assert {mask["file"]: mask["labels"] for mask in masks} == {
        "seg.dcm": {"3": "Liver"},
        "rt.dcm": {},
    }
