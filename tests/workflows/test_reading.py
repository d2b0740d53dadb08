"""Prediction over files some of which crash or hang their reader."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medseg.core.errors import FileError
from medseg.io import isolated
from medseg.io.isolated import IsolatedReader
from medseg.workflows import reading
from medseg.workflows.api import Model, load_model
from medseg.workflows.predict import predict
from medseg.workflows.reading import ScanReader, read_ahead
from medseg.workflows.segment import Prepared
from medseg.workflows.work import Work
from tests.dicom_phantoms import Series, random_voxels
from tests.io.faulty_reader import worker_with_faults
from tests.io.test_isolated import workers
from tests.models import small_plan, write_random_package
from tests.phantoms import blobs, oblique_affine, write_nifti

SHAPE = (11, 8, 6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("one") / "model"
    return load_model(write_random_package(folder, small_plan()), "cpu")


def nrrd(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.ascontiguousarray(blobs(SHAPE, seed=seed)[0].T))
    image.SetSpacing((1.5, 2.0, 3.5))
    image.SetOrigin((-31.0, 17.5, 42.25))
    sitk.WriteImage(image, str(path))
    return path


def test_files_that_crash_or_hang_fail_alone(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"case_{number}" for number in range(6)]
    names[2:2] = ["abort", "hang", "segfault"]
    for number, name in enumerate(names):
        nrrd(tmp_path / "in" / f"{name}.nrrd", seed=number)
    write_nifti(tmp_path / "in" / "other.nii.gz", blobs(SHAPE)[0], oblique_affine())
    expected = {
        name: model.predict(tmp_path / "in" / f"{name}.nrrd").labels
        for name in names
        if name.startswith("case")
    }
    monkeypatch.setattr(isolated, "_START", worker_with_faults(scan="read_or_fail"))
    monkeypatch.setattr(reading, "ScanReader", partial(ScanReader, limit_s=3.0))
    summary = predict(model, tmp_path / "in", tmp_path / "out")
    assert sorted(summary["failed"]) == ["abort", "hang", "segfault"]
    assert "the reader crashed on this file (SIGABRT)" in summary["failed"]["abort"]
    assert "the reader crashed on this file (SIGSEGV)" in summary["failed"]["segfault"]
    assert "still at it after 3 s" in summary["failed"]["hang"]
    assert sorted(summary["done"]) == [*expected, "other"]
    for name, labels in expected.items():
        mask = np.asarray(nib.load(summary["done"][name]).dataobj)
        np.testing.assert_array_equal(mask, labels)
    assert workers() == []


def test_all_of_them_crash(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = nrrd(tmp_path / "abort.nrrd")
    monkeypatch.setattr(isolated, "_START", worker_with_faults(scan="read_or_fail"))
    with pytest.raises(FileError, match=r"abort\.nrrd: .*reader crashed on this file"):
        predict(model, path, tmp_path / "out")
    assert workers() == []


def test_a_worker_that_was_killed_costs_nothing(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = nrrd(tmp_path / "in" / "a.nrrd")
    flag = tmp_path / "killed"
    monkeypatch.setattr(isolated, "_START", worker_with_faults(scan="killed_once"))
    monkeypatch.setenv("MEDSEG_TEST_FLAG", str(flag))
    summary = predict(model, tmp_path / "in", tmp_path / "out")
    assert flag.exists()
    assert summary["failed"] == {}
    assert "crashed on this file (SIGKILL)" in caplog.text
    assert "read once more" in caplog.text
    expected = model.predict(path).labels
    np.testing.assert_array_equal(np.asarray(nib.load(summary["done"]["a"]).dataobj), expected)
    assert workers() == []


def test_what_python_reads_needs_no_worker(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_nifti(tmp_path / "x.nii.gz", blobs(SHAPE)[0], oblique_affine())
    asked: list[str] = []
    read = IsolatedReader.read

    def watched(self: IsolatedReader, *arguments: Any, source: str, **named: Any) -> Any:
        asked.append(source)
        return read(self, *arguments, source=source, **named)

    monkeypatch.setattr(IsolatedReader, "read", watched)
    predict(model, path, tmp_path / "a")
    assert asked == []
    Series(random_voxels((22, 16, 12))).write(tmp_path / "study")
    summary = predict(model, [tmp_path / "study"], tmp_path / "b", save_scan=True)
    assert len(asked) == 1
    assert asked[0].startswith(str(tmp_path / "study"))
    # The scan that was written is the one that was read.
    (case,) = summary["done"]
    saved = nib.load(tmp_path / "b" / f"{case}_scan.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), random_voxels((22, 16, 12)))
    [mask] = [result.labels for result in model.predict_many([nrrd(tmp_path / "y.nrrd")])]
    assert asked[1:] == [str(tmp_path / "y.nrrd")]
    np.testing.assert_array_equal(mask, model.predict(tmp_path / "y.nrrd").labels)


def test_channels_of_several_formats(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = load_model(write_random_package(folder, small_plan(channels=2)), "cpu")
    first = nrrd(tmp_path / "in" / "x_0000.nrrd", seed=1)
    image = sitk.ReadImage(str(first))
    sitk.WriteImage(image * 2, str(tmp_path / "in" / "x_0001.nii.gz"))
    second = tmp_path / "in" / "x_0001.nii.gz"
    summary = predict(model, tmp_path / "in", tmp_path / "out")
    mask = np.asarray(nib.load(summary["done"]["x"]).dataobj)
    expected = model.predict({"first": first, "second": second}).labels
    np.testing.assert_array_equal(mask, expected)


def test_the_next_scan_is_read_meanwhile_and_no_other(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        write_nifti(tmp_path / "in" / f"{number}.nii", blobs(SHAPE)[0], oblique_affine())
    read, inferred = ScanReader.read, Model.infer
    begun = [threading.Event() for _ in range(6)]
    ahead: list[bool] = []

    def watched(self: ScanReader, source: Any, plan: Any) -> Any:
        begun[int(Path(source.source).stem)].set()
        return read(self, source, plan)

    def slow(self: Model, prepared: Prepared, **options: Any) -> Any:
        number = int(Path(prepared.scan.source).stem)
        # The next begins while this one is in the network; more than three are never at hand.
        ahead.append(number == 4 or begun[number + 1].wait(10))
        ahead.append(not begun[min(number + 3, 5)].wait(0.05))
        return inferred(self, prepared, **options)

    monkeypatch.setattr(ScanReader, "read", watched)
    monkeypatch.setattr(Model, "infer", slow)
    monkeypatch.setattr(Work, "is_small", lambda *_: False)
    assert len(predict(model, tmp_path / "in", tmp_path / "out")["done"]) == 5
    assert ahead == [True] * 10


def test_an_interrupted_batch_leaves_no_worker(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "hang", "z"):
        nrrd(tmp_path / "in" / f"{name}.nrrd")
    monkeypatch.setattr(isolated, "_START", worker_with_faults(scan="read_or_fail"))

    def interrupted(self: Model, prepared: Prepared, **options: Any) -> Any:
        # Ctrl-C while the network runs, and the next scan hangs in its reader.
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "infer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(model, tmp_path / "in", tmp_path / "out")
    assert workers() == []


def test_nothing_more_is_read_once_closed() -> None:
    read: list[int] = []
    readings = read_ahead(range(100), lambda reader, item: read.append(item))
    for item, done in readings:
        done.result()
        if item == 1:
            break
    readings.close()
    # Item 2 may have been begun; no other.
    assert read in ([0, 1], [0, 1, 2])
