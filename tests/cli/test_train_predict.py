"""The three commands on a tiny dataset, and what they say of bad input."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.cli.app import run
from tests.models import small_plan, write_random_package
from tests.phantoms import blobs, oblique_affine, write_msd_dataset, write_nifti

SMALL = [
    "--epochs", "1", "--device", "cpu", "--set", "base_features=4",
    "--set", "plan.training.steps_per_epoch=2", "--set", "plan.patch_size=[16,8,8]",
]  # fmt: skip


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "blobs"
    return write_msd_dataset(folder, cases=4, shape=(18, 14, 10))


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "data"))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_random_package(tmp_path / "model", small_plan())


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that cannot start, and give the one line that it says."""

    def check(*arguments: str | Path, code: int = 2) -> str:
        capsys.readouterr()
        assert run([str(argument) for argument in arguments]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert "fault of medseg" not in captured.err
        lines = captured.err.splitlines()
        assert lines[-1].startswith("error: ")
        assert sum(line.startswith("error: ") for line in lines) == 1
        return lines[-1]

    return check


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.name.startswith(".medseg")]


def test_three_commands(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder, masks, report = tmp_path / "run", tmp_path / "masks", tmp_path / "report"
    assert run(["train", str(data), "--out", str(run_folder), "--json", *SMALL]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["model"] == str(run_folder / "model")
    assert trained["steps"] == 2
    assert set(trained["seconds"]) >= {"prepare", "train", "validate", "total"}
    (held_out,) = trained["metrics"]["cases"]

    image = data / "imagesTr" / f"{held_out}.nii.gz"
    arguments = ["predict", trained["model"], str(image), "--out", str(masks), "--device", "cpu"]
    assert run([*arguments, "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert predicted["done"] == {held_out: str(masks / f"{held_out}.nii.gz")}
    assert predicted["failed"] == {}
    assert nib.load(predicted["done"][held_out]).shape == nib.load(image).shape

    references = str(data / "labelsTr" / f"{held_out}.nii.gz")
    done = ["evaluate", predicted["done"][held_out], references, "--out", str(report), "--json"]
    assert run(done) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["mean"]["dice"] == pytest.approx(trained["metrics"]["mean"]["dice"])
    assert json.loads((report / "metrics.json").read_text())["mean"] == scores["mean"]
    # All references: those without a prediction score 0, and the exit code says so.
    everything = ["evaluate", str(masks), str(data / "labelsTr"), "--out", str(report)]
    assert run(everything) == 3
    assert run([*everything, "--allow-missing"]) == 0

    # The folder holds a run now.
    capsys.readouterr()
    again = ["train", str(data), "--out", str(run_folder), *SMALL]
    assert run(again) == 2
    said = capsys.readouterr().err
    assert "expected a new folder, got a run. Add --resume" in said
    assert run([*again, "--resume", "--seed", "5"]) == 2
    assert "got other seed. Give the same command again" in capsys.readouterr().err
    assert leftovers(tmp_path) == []


def test_what_predict_says(
    package: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(data / "imagesTr" / "case_000.nii.gz", tmp_path / "bad.nii.gz")
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(bad.read_bytes()[:-40])
    arguments = ["predict", str(package), str(bad), str(data / "imagesTr"), "--out"]
    assert run([*arguments, str(tmp_path / "out")]) == 3
    captured = capsys.readouterr()
    assert re.fullmatch(rf"4 masks in {re.escape(str(tmp_path))}/out, \d+\.\d s\n", captured.out)
    (line,) = [line for line in captured.err.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: bad: ")
    assert "expected" in line
    assert run([*arguments, str(tmp_path / "again"), "--json", "--labels", "low"]) == 3
    summary = json.loads(capsys.readouterr().out)
    assert list(summary["failed"]) == ["bad"]
    assert sorted(summary["done"]) == [f"data/imagesTr/case_00{n}" for n in range(4)]
    mask = nib.load(tmp_path / "again" / "data" / "imagesTr" / "case_001.nii.gz")
    assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}


# Bad datasets


def label(data: Path, change: Callable[[np.ndarray], np.ndarray], move_mm: float = 0.0) -> None:
    path = data / "labelsTr" / "case_001.nii.gz"
    image = nib.load(path)
    affine = image.affine.copy()
    affine[1, 3] += move_mm
    write_nifti(path, change(np.asarray(image.dataobj)), affine)


def nan_voxels(data: Path) -> None:
    path = data / "imagesTr" / "case_001.nii.gz"
    image = nib.load(path)
    voxels = image.get_fdata(dtype=np.float32)
    voxels[3, 4, 5] = np.nan
    write_nifti(path, voxels, image.affine)


def truncate(data: Path) -> None:
    path = data / "imagesTr" / "case_001.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])


def truncate_inside(data: Path) -> None:
    path = data / "imagesTr" / "case_001.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-500]))


def rename_labels(data: Path) -> None:
    about = json.loads((data / "dataset.json").read_text())
    about["labels"]["3"] = "lung"
    (data / "dataset.json").write_text(json.dumps(about))


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no masks": (
        lambda data: shutil.rmtree(data / "labelsTr"),
        r"labelsTr/case_000\.nii\.gz: expected .*, got no such file",
    ),
    "one mask missing": (
        lambda data: (data / "labelsTr" / "case_001.nii.gz").unlink(),
        r"labelsTr/case_001\.nii\.gz: expected .*, got no such file",
    ),
    "shapes": (
        lambda data: label(data, lambda mask: mask[:-1]),
        r"case case_001, .*: expected the grid of its image, got shape \(.*Resample",
    ),
    "affines": (
        lambda data: label(data, lambda mask: mask, 7.5),
        r"case case_001, .*: expected the grid of its image, got the same shape, but .*7\.5 mm",
    ),
    "values": (
        lambda data: label(data, lambda mask: mask * 3),
        r"case case_001, .*: expected the values 0 and 1 low, 2 high, got also 3, 6\. Name them",
    ),
    "empty mask": (
        lambda data: label(data, lambda mask: mask * 0),
        r"case case_001, .*: expected at least one voxel of a label, got background alone",
    ),
    "fractions": (
        lambda data: label(data, lambda mask: mask * 0.5),
        r"case_001.*: expected whole numbers, got the value 0\.5\. Save the labels as integers",
    ),
    "NaN": (
        nan_voxels,
        r"case case_001, .*: expected finite voxels, got 1 of \d+ that are NaN or infinite\. Rep",
    ),
    "truncated gzip": (truncate, r"case_001\.nii\.gz: expected .*, got .*\. Copy or"),
    "truncated inside": (truncate_inside, r"case_001\.nii\.gz: expected .*, got "),
    "a label in no case": (
        rename_labels,
        r"training cases: expected each label in at least one case, got none with lung\. Leave",
    ),
    "no images": (
        lambda data: shutil.rmtree(data / "imagesTr"),
        r"imagesTr/case_000\.nii\.gz: expected .*, got no such file",
    ),
    "no JSON": (lambda data: (data / "dataset.json").write_text("{"), r"dataset\.json.*: expected"),
    "an empty folder": (
        lambda data: [shutil.rmtree(data), data.mkdir()],
        r"data: expected .*, got .*",
    ),
    "no folder": (shutil.rmtree, r"data: expected .*, got .*"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_datasets(fault: str, data: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    spoil, told = BAD[fault]
    spoil(data)
    line = refused("train", data, "--out", tmp_path / "run", *SMALL)
    assert re.search(told, line), line
    assert ", got " in line
    assert not (tmp_path / "run" / "model").exists()
    assert leftovers(tmp_path) == []


def test_after_the_cure_the_same_command_runs(
    data: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    label(data, lambda mask: mask * 3)
    arguments = ["train", str(data), "--out", str(tmp_path / "run"), *SMALL]
    refused(*arguments)
    label(data, lambda mask: mask // 3)
    assert run(arguments) == 0


# Bad options


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--budget", "10min", "--epochs", "3"], "a budget or a number of epochs, not both"),
        (["--budget", "soon"], r"expected a time such as 90s, 10min or 2h, got 'soon'"),
        (["--budget", "-5"], "expected a time"),
        (["--epochs", "0"], "setting 'epochs': expected greater than or equal to 1, got 0"),
        (["--set", "base_featurs=4"], r"'base_featurs'.*Did you mean 'base_features'\?"),
        (["--set", "plan.no_such=4"], r"plan\.no_such: expected a key of the plan"),
        (["--set", "plan.patch_size=[0,0,0]"], r"plan\.patch_size\.0: expected .*, got 0"),
        (["--set", "epochs"], "expected key=value, got 'epochs'"),
        (["--set", "network=transformer"], "network 'transformer': expected one of"),
        (["--config", "no_such"], r"expected a YAML file or a preset \(.*default"),
        (["--fold", "7"], "fold"),
        (["--fold", "3"], "fold"),
        (["--labels", "lung"], "expected one of low, high, got lung"),
        (["--labels", "a=1,a=2"], "--labels: expected a name of its own"),
        (["--device", "abacus"], "--device: expected auto, cpu, cuda"),
        (["--seed", "-1"], "seed"),
        (["--resume"], r"expected a run that was stopped, got no run\.json\. Leave --resume away"),
    ],
)
def test_bad_options(
    options: list[str], told: str, pristine: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    line = refused("train", pristine, "--out", tmp_path / "run", *options)
    assert re.search(told, line), line
    assert not (tmp_path / "run" / "model").exists()


def test_train_where_nothing_can_be_written(
    pristine: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "file").write_text("kept")
    line = refused("train", pristine, "--out", tmp_path / "file", *SMALL)
    assert "file" in line
    assert (tmp_path / "file").read_text() == "kept"


# Bad input of predict


def test_predict_with_bad_models(
    package: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = write_nifti(tmp_path / "x.nii.gz", blobs((11, 8, 6))[0], oblique_affine())
    rest = [path, "--out", tmp_path / "out"]
    line = refused("predict", tmp_path / "none", *rest)
    assert "expected a model package" in line
    assert "Give RUN/model" in line
    weights = package / "weights_0.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    line = refused("predict", package, *rest)
    assert re.search(r"weights_0\.safetensors: expected SHA-256 .*, got .*\. The file was", line)
    weights.unlink()
    assert "weights_0.safetensors" in refused("predict", package, *rest)
    assert not (tmp_path / "out").exists()


def test_predict_with_bad_inputs(
    package: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "empty").mkdir()
    path = write_nifti(tmp_path / "x.nii.gz", blobs((11, 8, 6))[0], oblique_affine())
    out = ["--out", tmp_path / "out"]
    assert "expected at least one scan, got none" in refused(
        "predict", package, tmp_path / "empty", *out
    )
    assert "at least one scan" in refused("predict", package, *out)
    assert "no such path" in refused("predict", package, tmp_path / "none", *out)
    assert "one of low, high" in refused("predict", package, path, *out, "--labels", "lung")
    assert "expected some of low, high" in refused("predict", package, path, *out, "--labels", "")
    assert "--device" in refused("predict", package, path, *out, "--device", "abacus")
    assert "CSV table" in refused("predict", package, *out, "--cases", tmp_path / "none.csv")
    assert not (tmp_path / "out").exists()
    assert "masks replace no scan" in refused("predict", package, path, "--out", tmp_path)
    voxels = np.full((11, 8, 6), np.nan, np.float32)
    write_nifti(tmp_path / "nan.nii.gz", voxels, oblique_affine())
    line = refused("predict", package, tmp_path / "nan.nii.gz", *out)
    assert re.search(r"nan\.nii\.gz: expected finite voxels, got 528 that are NaN.*Replace", line)
    truncated = tmp_path / "cut.nii.gz"
    truncated.write_bytes(path.read_bytes()[:-50])
    assert "Copy or export it again" in refused("predict", package, truncated, *out)
    assert list((tmp_path / "out").iterdir()) == []
