"""The Python interface as the README writes it: each way in, each way out, no noise."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import logging
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from typer.main import get_command

import medseg
from medseg.core.errors import (
    FileError,
    GeometryError,
    InputError,
    LabelError,
    MedsegError,
    OutputError,
    PackageError,
    ResourceError,
)
from tests.models import small_plan, write_random_package
from tests.phantoms import blobs, oblique_affine, write_msd_dataset, write_nifti

SHAPE = (22, 16, 12)
AFFINE = oblique_affine()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_package(tmp_path_factory.mktemp("one") / "model", small_plan())


@pytest.fixture(scope="module")
def model(package: Path) -> medseg.Model:
    return medseg.load_model(package, device="cpu")


@pytest.fixture(scope="module")
def model_of_two(tmp_path_factory: pytest.TempPathFactory) -> medseg.Model:
    folder = tmp_path_factory.mktemp("two") / "model"
    return medseg.load_model(write_random_package(folder, small_plan(channels=2)), "cpu")


def scan(path: Path, seed: int = 0) -> Path:
    return write_nifti(path, blobs(SHAPE, seed=seed)[0], AFFINE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return scan(tmp_path / "scan.nii.gz")


def test_the_block_of_the_readme_runs(
    package: Path, path: Path, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    readme = (repository / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(package, tmp_path / "runs" / "hippocampus" / "model")
    capfd.readouterr()
    room: dict[str, Any] = {"paths": [path, str(path)]}
    exec(compile(block, "README.md", "exec"), room)  # noqa: S102 - it is our own page
    assert capfd.readouterr() == ("", "")
    result = room["result"]
    assert result.labels.shape == SHAPE
    assert sorted(result.volumes_ml()) == ["high", "low"]
    saved = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), result.labels)


def test_every_door_gives_the_same_mask(model: medseg.Model, path: Path) -> None:
    image = nib.load(path)
    array = np.asarray(image.dataobj)
    doors = {
        "Path": path,
        "str": str(path),
        "nibabel": image,
        "nibabel, in memory": nib.Nifti1Image(array, image.affine),
        "SimpleITK": sitk.ReadImage(str(path)),
        "array": (array, image.affine),
        "array of one channel": (array[None], image.affine),
        "float array": (array.astype(np.float64), image.affine.tolist()),
        "Scan": medseg.read_scan(path),
        "by name": {"first": path},
    }
    expected = model.predict(path)
    assert expected.labels.dtype == np.uint8
    assert set(np.unique(expected.labels)) == {0, 1, 2}
    for name, source in doors.items():
        result = model.predict(source)
        np.testing.assert_array_equal(result.labels, expected.labels, err_msg=name)
        np.testing.assert_allclose(result.affine, AFFINE, atol=1e-5, err_msg=name)
        assert result.provenance["package_sha256"] == model.sha256
        files = 1 if name in ("Path", "str", "by name") else 0
        assert len(result.provenance["input_sha256"]) == files, name


def test_several_channels_by_name(model_of_two: medseg.Model, tmp_path: Path) -> None:
    a, b = scan(tmp_path / "a.nii.gz", 1), scan(tmp_path / "b.nii.gz", 2)
    expected = model_of_two.predict({"first": a, "second": b}).labels
    other_order = model_of_two.predict({"second": str(b), "first": nib.load(a)}).labels
    np.testing.assert_array_equal(expected, other_order)
    stacked = np.stack([np.asarray(nib.load(p).dataobj) for p in (a, b)])
    np.testing.assert_array_equal(expected, model_of_two.predict((stacked, AFFINE)).labels)
    swapped = model_of_two.predict({"first": b, "second": a}).labels
    assert np.any(swapped != expected)


def test_out_again(model: medseg.Model, path: Path, tmp_path: Path) -> None:
    result = model.predict(path)
    image, given = result.to_nibabel(), nib.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj), result.labels)
    assert image.affine.tobytes() == given.affine.tobytes()
    theirs, ours = sitk.ReadImage(str(path)), result.to_sitk()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours).transpose(), result.labels)
    assert ours.GetSpacing() == pytest.approx(theirs.GetSpacing(), rel=1e-6)
    assert ours.GetOrigin() == pytest.approx(theirs.GetOrigin(), rel=1e-6)
    assert ours.GetDirection() == pytest.approx(theirs.GetDirection(), abs=1e-6)
    for name in ("a/mask.nii.gz", "mask.nii"):
        saved = result.save(str(tmp_path / name))
        assert saved == tmp_path / name
        np.testing.assert_array_equal(np.asarray(nib.load(saved).dataobj), result.labels)
    facts = json.loads((tmp_path / "a" / "mask.json").read_text())
    assert facts["input_sha256"] == [hashlib.sha256(path.read_bytes()).hexdigest()]
    # The mask is a scan like any other.
    assert medseg.read_scan(tmp_path / "mask.nii").geometry == medseg.read_scan(path).geometry


def test_save_refuses_other_names(model: medseg.Model, path: Path, tmp_path: Path) -> None:
    result = model.predict(path)
    with pytest.raises(InputError, match=r"a name ending in \.nii\.gz or \.nii"):
        result.save(tmp_path / "mask.txt")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="writing"):
        result.save(tmp_path / "file" / "mask.nii.gz")


def test_volumes_against_a_count_by_hand(model: medseg.Model, path: Path) -> None:
    result = model.predict(path)
    for value, name in ((1, "low"), (2, "high")):
        voxels = int((result.labels == value).sum())
        assert result.volumes_ml()[name] == pytest.approx(voxels * 1.5 * 2.0 * 3.5 / 1000, rel=1e-5)
    part = model.predict(path, labels=["low"])
    assert part.volumes_ml() == {"low": result.volumes_ml()["low"]}
    assert part.label_set.names == ("low",)


# Many scans


def test_many_come_one_by_one_and_in_order(model: medseg.Model, tmp_path: Path) -> None:
    paths = [scan(tmp_path / f"{n}.nii.gz", seed=n) for n in range(4)]
    taken: list[int] = []

    def sources() -> Iterator[Path]:
        for number, path in enumerate(paths):
            taken.append(number)
            yield path

    results = model.predict_many(sources())
    assert taken == []
    for number, path in enumerate(paths):
        result = next(results)
        # The next scan is being read already, none after that.
        assert len(taken) == min(number + 2, 4)
        np.testing.assert_array_equal(result.labels, model.predict(path).labels)
        assert result.provenance == model.predict(path).provenance
    assert list(results) == []
    assert list(model.predict_many([])) == []


def test_many_stop_at_the_one_that_is_wrong(model: medseg.Model, tmp_path: Path) -> None:
    good = scan(tmp_path / "a.nii.gz")
    results = model.predict_many([good, tmp_path / "none.nii.gz", good])
    assert next(results).labels.shape == SHAPE
    with pytest.raises(FileError, match=r"none\.nii\.gz: expected a scan, got no such file"):
        next(results)
    # Leaving early is no error, and leaves no thread behind that holds a file.
    early = model.predict_many([good, good, good])
    next(early)
    early.close()  # type: ignore[attr-defined]


def test_threads_share_a_model(model: medseg.Model, tmp_path: Path) -> None:
    paths = [scan(tmp_path / f"{n}.nii.gz", seed=n) for n in range(8)]
    alone = [model.predict(path).labels for path in paths]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(model.predict, paths))
    for expected, result in zip(alone, together, strict=True):
        np.testing.assert_array_equal(result.labels, expected)


# What is wrong


@pytest.mark.parametrize(
    ("source", "error", "told"),
    [
        (3, InputError, "a path, a nibabel or SimpleITK image"),
        (None, InputError, "NoneType"),
        ([1, 2], InputError, "list"),
        ((np.zeros((3, 4)), np.eye(4)), InputError, r"\(I, J, K\)"),
        ((np.zeros((3, 4, 5), complex), np.eye(4)), InputError, "real numbers"),
        ((np.zeros((3, 4, 5)), np.eye(3)), GeometryError, "4x4"),
        ((np.zeros((3, 4, 5)), np.zeros((4, 4))), GeometryError, "axes"),
        ((np.zeros((0, 4, 5)), np.eye(4)), GeometryError, "at least 1"),
        ((np.zeros((2, 3, 4, 5)), np.eye(4)), InputError, r"1 channel \(first\), got 2"),
        ((np.full((3, 4, 5), np.inf), np.eye(4)), FileError, "60 that are NaN or infinite"),
        ({"T1": 1}, InputError, "expected first, got T1"),
        ({}, InputError, "expected first, got none"),
        ("no/such/scan.nii.gz", FileError, "no such file"),
    ],
)
def test_sources_that_are_wrong(
    model: medseg.Model, source: Any, error: type[MedsegError], told: str
) -> None:
    with pytest.raises(error, match=told):
        model.predict(source)


def test_labels_that_are_not_there(model: medseg.Model, path: Path) -> None:
    for call in (
        model.predict,
        lambda source, labels: next(model.predict_many([source], labels=labels)),
    ):
        with pytest.raises(LabelError, match="one of low, high"):
            call(path, labels=["lung"])


def test_no_model(tmp_path: Path) -> None:
    for there in (tmp_path, str(tmp_path / "none")):
        with pytest.raises(PackageError, match="Give RUN/model of a finished training"):
            medseg.load_model(there)
    with pytest.raises(ResourceError, match="--device"):
        medseg.load_model(tmp_path, device="abacus")


def test_a_run_folder_stands_for_its_model(package: Path, path: Path) -> None:
    model = medseg.load_model(str(package.parent), device="cpu")
    assert model.labels.names == ("low", "high")
    assert model.plan == small_plan()
    assert model.device == "cpu"
    assert model.predict(path).provenance["members"] == 1


# Noise, and the commands from Python


def test_nothing_is_printed(
    package: Path, path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    capfd.readouterr()
    with caplog.at_level(logging.DEBUG):
        medseg.predict(package, [path], tmp_path / "out", device="cpu")
        medseg.evaluate(tmp_path / "out", tmp_path / "out", out=tmp_path / "evaluation")
        medseg.info(path)
    assert capfd.readouterr() == ("", "")
    assert all(str(tmp_path) not in r.getMessage() for r in caplog.records if r.levelno < 20)
    assert logging.getLogger("medseg").handlers == []


def test_train_predict_evaluate(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_msd_dataset(tmp_path / "data", cases=4, shape=(18, 14, 10))
    capfd.readouterr()
    result = medseg.train(
        str(data), str(tmp_path / "run"), epochs=1, base_features=4, device="cpu",
        plan={"training": {"steps_per_epoch": 2}, "patch_size": [16, 8, 8]},
    )  # fmt: skip
    assert result["steps"] == 2
    (held_out,) = json.loads((data / "splits.json").read_text())[0]["val"]
    image = data / "imagesTr" / f"{held_out}.nii.gz"
    done = medseg.predict(result["model"], image, tmp_path / "masks", device="cpu")["done"]
    # What was trained and what is used see the same: the mask is that of the validation.
    np.testing.assert_array_equal(
        np.asarray(nib.load(done[held_out]).dataobj),
        np.asarray(nib.load(tmp_path / "run" / "validation" / f"{held_out}.nii.gz").dataobj),
    )
    metrics = medseg.evaluate(
        tmp_path / "masks", data / "labelsTr", out=tmp_path / "e", cases=[held_out]
    )
    assert metrics["mean"]["dice"] == pytest.approx(result["metrics"]["mean"]["dice"])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["train", "predict", "evaluate"])
def test_functions_take_what_commands_take(name: str) -> None:
    from medseg.batch.local import BatchOptions
    from medseg.cli.app import app
    from medseg.core.settings import TrainSettings
    from medseg.workflows.evaluate import EvaluateOptions
    from medseg.workflows.options import PredictKeywords

    (command,) = [c for n, c in get_command(app).commands.items() if n == name]  # type: ignore[attr-defined]
    known = set(inspect.signature(getattr(medseg, name)).parameters)
    if name == "train":
        # "from" is a word of Python's: start_from.
        assert "start_from" in TrainSettings.model_fields
        known |= set(TrainSettings.model_fields) | {"set", "budget", "checkpoint_every", "from"}
    if name == "evaluate":
        known |= EvaluateOptions.__annotations__.keys()
    if name == "predict":
        known |= PredictKeywords.__annotations__.keys()
        # The ledger's, which ``predict_batch`` takes.
        known |= {field.name for field in dataclasses.fields(BatchOptions)}
        known |= {"max_memory", "max_device_memory", "verbose"}  # in words, and the log
        # From Python a format is the value itself: contours="json", meshes="stl".
        known |= {"contour_format", "mesh_format"}
    options = {
        (p.opts[0].lstrip("-").replace("-", "_") if p.param_type_name == "option" else p.name)
        for p in command.params
    }
    assert options - {"json", "help"} <= known
