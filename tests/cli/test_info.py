from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medseg.cli.app import run
from medseg.cli.info import fact_lines
from tests.models import small_plan, write_random_package
from tests.phantoms import lopsided_volume, oblique_affine, write_nifti


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    voxels, affine = lopsided_volume((11, 8, 6))
    return write_nifti(tmp_path / "scan.nii.gz", voxels, affine)


def facts_of(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert run(["info", str(path), "--json"]) == 0
    facts: dict[str, object] = json.loads(capsys.readouterr().out)
    return facts


def test_scan_as_json(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = facts_of(scan, capsys)
    assert facts["kind"] == "scan"
    assert facts["shape"] == [11, 8, 6]
    assert facts["spacing_mm"] == [1.5, 2.0, 3.5]
    assert facts["size_mm"] == [16.5, 16.0, 21.0]
    assert facts["axis_codes"] == "RAS"
    assert facts["dtype"] == "int16"
    assert facts["range"] == [0, 11 * 8 * 6 - 1]
    assert facts["non_finite_voxels"] == 0
    assert facts["shear_voxels"] == 0


def test_scan_in_words(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(scan)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["shape"].strip() == "11, 8, 6"
    assert lines["spacing_mm"].strip() == "1.5, 2, 3.5"


def test_scan_without_finite_voxels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voxels = np.full((4, 3, 2), np.nan, dtype=np.float32)
    facts = facts_of(write_nifti(tmp_path / "nan.nii.gz", voxels, oblique_affine()), capsys)
    assert facts["range"] is None
    assert facts["non_finite_voxels"] == 24


def test_what_is_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "absent.nii.gz"):
        assert run(["info", str(path)]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert "expected" in told
        assert len(told.splitlines()) == 1


def test_truncated_scan(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan.write_bytes(scan.read_bytes()[:-200])
    assert run(["info", str(scan)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_facts_within_facts() -> None:
    facts = {"a": {"long": [[1, 2], [0.25, 3]], "b": []}, "c": [{"d": 1, "e": "f"}], "g": None}
    assert fact_lines(facts) == [
        "a",
        "  long  (1, 2), (0.25, 3)",
        "  b     -",
        "c",
        "  d 1; e f",
        "g  -",
    ]


def test_a_model_tells_what_it_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = facts_of(write_random_package(tmp_path / "model", small_plan()), capsys)
    assert facts["kind"] == "model"
    # Two stages of 4 and 8 channels, one channel in, three classes out; by hand in
    # tests/networks/test_unet.py and test_cost.py.
    weights = [4 * 27, 4 * 4 * 27, 4 * 8 * 27, 8 * 8 * 27, 8 * 4 * 8, 8 * 4 * 27, 4 * 4 * 27]
    norms = [4, 4, 8, 8, 4, 4]
    assert facts["parameters"] == sum(weights) + 3 * sum(norms) + 4 + 4 * 3 + 3
    assert facts["gflops_per_patch"] == 0.007  # 6.77 million, by hand in test_cost.py
    assert run(["info", str(tmp_path / "model")]) == 0
    assert "gflops_per_patch" in capsys.readouterr().out
