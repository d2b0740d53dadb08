"""``predict --per-label --contours --meshes --measure --preview``: files, ledger, bad wishes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from medseg.batch.local import predict_batch
from medseg.cli.app import run
from medseg.core.errors import InputError, SettingsError
from medseg.io.formats import read_mask, read_scan
from medseg.workflows.predict import predict
from tests.models import small_plan, write_random_package
from tests.phantoms import blobs, oblique_affine, write_nifti

SHAPE = (25, 19, 14)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_package(tmp_path_factory.mktemp("outputs") / "model", small_plan())


def scan(path: Path, seed: int = 0) -> Path:
    return write_nifti(path, blobs(SHAPE, seed=seed, noise=120.0)[0], oblique_affine())


def made(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and ".medseg" not in path.parts
    )


def test_all_of_them(package: Path, tmp_path: Path) -> None:
    source, out = scan(tmp_path / "x.nii.gz"), tmp_path / "out"
    flags = ["--per-label", "--contours", "--meshes", "--measure", "--preview"]
    chosen = ["--mesh-format", "glb", "--backend", "torch", "--device", "cpu"]
    assert run(["predict", str(package), str(source), "--out", str(out), *flags, *chosen]) == 0
    assert made(out) == [
        "x.json", "x.nii.gz", "x_contours.json", "x_labels/high.nii.gz", "x_labels/low.nii.gz",
        "x_measurements.csv", "x_meshes.glb", "x_preview.png",
    ]  # fmt: skip
    mask, _ = read_mask(out / "x.nii.gz")
    voxels = read_scan(source).voxels()[0]
    with (out / "x_measurements.csv").open(newline="") as stream:
        rows = {row["label"]: row for row in csv.DictReader(stream)}
    for value, name in ((1, "low"), (2, "high")):
        own, _ = read_mask(out / "x_labels" / f"{name}.nii.gz")
        np.testing.assert_array_equal(own == 1, mask == value)
        assert int(rows[name]["voxels"]) == int((mask == value).sum())
        if (mask == value).any():
            assert float(rows[name]["mean"]) == pytest.approx(voxels[mask == value].mean())


def test_the_ledger_knows_them(package: Path, tmp_path: Path) -> None:
    scan(tmp_path / "in" / "a.nii.gz")
    inputs, out = tmp_path / "in", tmp_path / "out"
    options = {"device": "cpu", "backend": "torch"}
    assert predict_batch(package, inputs, out, **options)["kept"] == 0
    assert predict_batch(package, inputs, out, **options)["kept"] == 1
    assert predict_batch(package, inputs, out, measure=True, **options)["kept"] == 0
    assert predict_batch(package, inputs, out, measure=True, **options)["kept"] == 1
    (out / "a_measurements.csv").unlink()
    assert predict_batch(package, inputs, out, measure=True, **options)["kept"] == 0
    assert (out / "a_measurements.csv").is_file()


def test_what_cannot_be_had(package: Path, tmp_path: Path) -> None:
    source = scan(tmp_path / "x.nii.gz")
    options = {"device": "cpu", "backend": "torch"}
    with pytest.raises(SettingsError, match="--meshes"):
        predict(package, source, tmp_path / "out", meshes="fbx", **options)
    with pytest.raises(InputError, match="a volume"):
        predict(package, source, tmp_path / "out", contours="svg", **options)
    assert made(tmp_path / "out") == []
    # A scan that lies where a result would go is not written over.
    clash = scan(tmp_path / "x_labels" / "low.nii.gz")
    with pytest.raises(InputError, match="which is a scan"):
        predict(package, [source, clash], tmp_path, per_label=True, **options)
