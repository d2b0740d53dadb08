"""The backend of a model, from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.cli.app import run
from medseg.core.errors import SettingsError
from medseg.inference import choice, openvino_backend
from medseg.workflows.api import load_model
from tests.models import small_plan, write_random_package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_package(tmp_path_factory.mktemp("model"), small_plan(), members=2)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    voxels = np.random.Generator(np.random.PCG64(0)).normal(size=(30, 21, 12)).astype(np.float32)
    path = tmp_path_factory.mktemp("scans") / "case.nii.gz"
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.4, 2.1, 2.8, 1.0])), path)
    return path


@pytest.mark.skipif(openvino_backend.openvino_version() is None, reason="openvino is not installed")
def test_openvino_gives_the_masks_of_torch_and_says_so(package: Path, scan: Path) -> None:
    reference = load_model(package, "cpu", backend="torch").predict(scan)
    result = load_model(package, "cpu", backend="openvino").predict(scan)
    assert reference.provenance["backend"] == "torch"
    assert result.provenance["backend"] == "openvino"
    assert result.provenance["members"] == 2
    assert np.mean(result.labels == reference.labels) > 0.999
    assert len(np.unique(reference.labels)) > 1


def test_auto_leaves_small_scans_to_torch(
    package: Path, scan: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDSEG_CACHE", str(tmp_path / "cache"))
    model = load_model(package, "cpu")
    assert model.predict(scan).provenance["backend"] == "torch"
    assert not (tmp_path / "cache").exists()
    if openvino_backend.openvino_version() is None:
        return
    # With work enough the same model goes over to OpenVINO, between two scans.
    monkeypatch.setattr(choice, "PAYS_FROM_S", 0.0)
    times = iter([1e-9, 1e-12, 1e-12])
    monkeypatch.setattr(choice, "_timed", lambda work: next(times))
    assert model.predict(scan).provenance["backend"] == "openvino"
    assert len(list((tmp_path / "cache" / "openvino").iterdir())) == 2
    assert load_model(package, "cpu").predict(scan).provenance["backend"] == "openvino"


def test_from_the_command_line(
    package: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(package), str(scan), "--out", str(tmp_path), "--device", "cpu"]
    assert run([*command, "--backend", "torch"]) == 0
    facts = json.loads((tmp_path / "case.json").read_text(encoding="utf-8"))
    assert facts["backend"] == "torch"
    capsys.readouterr()
    assert run([*command, "--backend", "tensorrt"]) == 2
    assert "--backend" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="openvino"):
        load_model(package, backend="tensorrt")
