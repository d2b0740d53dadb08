"""Evaluate from files: pairing, names, what is missing or broken, and what is written."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image

from medseg.core.errors import FileError, InputError, LabelError, SettingsError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.results import Prediction
from medseg.io import isolated
from medseg.io.formats import write_mask
from medseg.workflows.evaluate import evaluate
from medseg.workflows.groups import read_groups
from tests.io.faulty_reader import worker_with_faults
from tests.phantoms import blobs, oblique_affine, write_msd_dataset, write_nifti

SHAPE = (14, 11, 8)
AFFINE = oblique_affine()
METRICS = {"dice", "iou", "hd95_mm", "nsd"}


def _mask(seed: int = 0) -> NDArray[np.uint8]:
    return blobs(SHAPE, seed=seed)[1]


def _write(folder: Path, *cases: str, shift: int = 0) -> Path:
    for number, case in enumerate(cases):
        write_nifti(folder / f"{case}.nii.gz", np.roll(_mask(number), shift, axis=0), AFFINE)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and references of three cases, one in a subfolder; perfect ones."""
    cases = ("a", "b", "deep/c")
    return _write(tmp_path / "pred", *cases), _write(tmp_path / "ref", *cases)


def test_perfect_masks(folders: tuple[Path, Path]) -> None:
    seen: list[tuple[int, int]] = []
    result = evaluate(*folders, progress=lambda done, total, _: seen.append((done, total)))
    assert list(result["cases"]) == ["a", "b", "deep/c"]
    assert {metric: result["mean"][metric] for metric in METRICS} == {
        "dice": 1.0, "iou": 1.0, "hd95_mm": 0.0, "nsd": 1.0,
    }  # fmt: skip
    assert result["missing"] == result["unpaired"] == []
    assert result["failed"] == {}
    assert result["labels"]["1"]["name"] == "label 1"
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_spacing_of_the_file_is_used(tmp_path: Path) -> None:
    masks = np.zeros((2, *SHAPE), dtype=np.uint8)
    masks[0, 3, 4, 5], masks[1, 3, 4, 3] = 1, 1
    for name, mask in zip(("pred", "ref"), masks, strict=True):
        write_nifti(tmp_path / name / "a.nii.gz", mask, AFFINE)
    result = evaluate(tmp_path / "pred", tmp_path / "ref", tolerance_mm=7.0)
    # Two steps of 3.5 mm on an oblique grid.
    assert result["mean"]["hd95_mm"] == pytest.approx(7.0, rel=1e-5)
    assert result["mean"]["nsd"] == 1.0
    assert result["mean"]["dice"] == 0.0


def test_files_that_are_written(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = evaluate(*folders, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "metrics.csv", "metrics.json", "report.html", "worst.png",
    ]  # fmt: skip
    assert json.loads((out / "metrics.json").read_text()) == result
    with (out / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["value"]) for row in rows[-2:]] == [("deep/c", "1"), ("deep/c", "2")]
    assert set(rows[0]) > METRICS
    with Image.open(out / "worst.png") as picture:
        assert picture.width > 300
    # Into the predictions' own folder, twice: the picture is not taken for a prediction.
    evaluate(*folders, folders[0])
    assert evaluate(*folders, folders[0])["unpaired"] == []


def test_a_missing_prediction_scores_zero(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    (predictions / "b.nii.gz").unlink()
    result = evaluate(predictions, references)
    assert result["missing"] == ["b"]
    missed = result["cases"]["b"]["1"]
    assert (missed["dice"], missed["nsd"], missed["hd95_mm"]) == (0.0, 0.0, None)
    assert missed["prediction_ml"] == 0.0 < missed["reference_ml"]
    assert result["mean"]["dice"] == pytest.approx(2 / 3)
    assert result["labels"]["1"]["undefined"] == 1
    allowed = evaluate(predictions, references, allow_missing=True)
    assert allowed["missing"] == ["b"]
    assert allowed["mean"]["dice"] == 1.0
    assert "b" not in allowed["cases"]


def test_other_grids_and_damaged_files_do_not_stop_the_rest(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    moved = AFFINE.copy()
    moved[0, 3] += 5.0
    write_nifti(predictions / "b.nii.gz", _mask(1), moved)
    whole = (predictions / "deep" / "c.nii.gz").read_bytes()
    (predictions / "deep" / "c.nii.gz").write_bytes(whole[: len(whole) // 2])
    result = evaluate(predictions, references)
    assert list(result["cases"]) == ["a"]
    assert list(result["failed"]) == ["b", "deep/c"]
    assert "5 mm apart" in result["failed"]["b"]
    (predictions / "a.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="all 3 cases failed"):
        evaluate(predictions, references)


def test_only_some_cases(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    (predictions / "b.nii.gz").unlink()
    _write(predictions, "extra")
    assert evaluate(predictions, references)["unpaired"] == ["extra"]
    result = evaluate(predictions, references, cases=["deep/c", "a"])
    assert list(result["cases"]) == ["a", "deep/c"]
    assert result["missing"] == result["unpaired"] == []
    with pytest.raises(InputError, match="nobody"):
        evaluate(predictions, references, cases=["a", "nobody"])


def test_names_from_the_header_of_the_predictions(tmp_path: Path) -> None:
    labels = LabelSet.from_names({2: "high", 7: "nowhere"})
    prediction = Prediction(_mask(), Geometry(SHAPE, AFFINE), labels)
    (tmp_path / "pred").mkdir()
    write_mask(tmp_path / "pred" / "a.nii.gz", prediction)
    result = evaluate(tmp_path / "pred", _write(tmp_path / "ref", "a"))
    assert {value: row["name"] for value, row in result["labels"].items()} == {
        "2": "high", "7": "nowhere",
    }  # fmt: skip
    assert result["labels"]["7"]["left_out"] == 1
    assert result["mean"]["dice"] == 1.0


def test_names_and_united_labels_from_the_dataset(tmp_path: Path) -> None:
    dataset = write_msd_dataset(tmp_path / "data", cases=2)
    predictions = tmp_path / "pred"
    predictions.mkdir()
    for path in (dataset / "labelsTr").iterdir():
        (predictions / path.name).write_bytes(path.read_bytes())
    for references in (dataset, dataset / "labelsTr"):
        result = evaluate(predictions, references)
        assert [row["name"] for row in result["labels"].values()] == ["low", "high"]
    chosen = evaluate(predictions, dataset, labels="HIGH")
    assert [row["name"] for row in chosen["labels"].values()] == ["high"]
    # Both united under value 1: only the first label of the predictions has that value.
    united = evaluate(predictions, dataset, labels="both=1+2")
    assert 0.2 < united["labels"]["1"]["dice"] < 0.9
    assert united["labels"]["1"]["name"] == "both"
    with pytest.raises(LabelError, match="lung"):
        evaluate(predictions, dataset, labels="lung")


def test_names_that_disagree_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = write_msd_dataset(tmp_path / "data", cases=1)
    from medseg.io.formats import read_mask

    mask, scan = read_mask(dataset / "labelsTr" / "case_000.nii.gz")
    (tmp_path / "pred").mkdir()
    named = LabelSet.from_names({1: "liver", 2: "high"})
    write_mask(tmp_path / "pred" / "case_000.nii.gz", Prediction(mask, scan.geometry, named))
    with caplog.at_level(logging.WARNING, logger="medseg"):
        evaluate(tmp_path / "pred", dataset)
    assert [record.message for record in caplog.records] == [
        "value 1 is 'liver' in the predictions, but 'low' in dataset.json"
    ]


def test_two_single_files_and_flat_pictures(tmp_path: Path) -> None:
    flat = blobs((20, 13, 1))[1]
    for name in ("truth.png", "mine.png"):
        Image.fromarray(np.ascontiguousarray(flat[:, :, 0].T)).save(tmp_path / name)
    result = evaluate(tmp_path / "mine.png", tmp_path / "truth.png", tmp_path / "out")
    assert list(result["cases"]) == ["truth"]
    assert result["mean"]["dice"] == 1.0


def test_scans_under_the_picture(
    folders: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    write_nifti(images / "a.nii.gz", blobs(SHAPE)[0], AFFINE)
    write_nifti(images / "b_0000.nii.gz", blobs((9, 9, 9))[0], AFFINE)
    plain, drawn = tmp_path / "plain", tmp_path / "drawn"
    evaluate(*folders, plain)
    with caplog.at_level(logging.WARNING, logger="medseg"):
        evaluate(*folders, drawn, images=images)
    assert (plain / "worst.png").read_bytes() != (drawn / "worst.png").read_bytes()
    assert "case b is drawn without its scan: shape (9, 9, 9)" in caplog.text


def test_empty_masks_leave_no_picture(tmp_path: Path) -> None:
    for name in ("pred", "ref"):
        write_nifti(tmp_path / name / "a.nii.gz", np.zeros(SHAPE, dtype=np.uint8), AFFINE)
    result = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    assert result["mean"]["dice"] is None
    assert not (tmp_path / "out" / "worst.png").exists()


def test_nothing_that_could_start(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = folders
    with pytest.raises(FileError, match="no such folder"):
        evaluate(tmp_path / "absent", references)
    with pytest.raises(InputError, match="x against a, b, deep/c"):
        evaluate(_write(tmp_path / "other", "x"), references)
    with pytest.raises(SettingsError, match="tolerance_mm"):
        evaluate(predictions, references, tolerance_mm=float("nan"))
    write_nifti(predictions / "a.nii", _mask(), AFFINE)
    with pytest.raises(InputError, match=r"a\.nii and a\.nii\.gz"):
        evaluate(predictions, references)


def test_workers_do_not_change_the_result(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    _write(predictions, "a", "b", shift=1)
    one: dict[str, Any] = evaluate(predictions, references, workers=1)
    assert evaluate(predictions, references, workers=3) == one


def _write_organs(folder: Path, mask: NDArray[np.uint8], *, inner: str = "segmentations") -> Path:
    """A file per organ: both blobs, and one that covers them and more."""
    for name, organ in (("high", mask == 2), ("low", mask == 1), ("body", mask < 9)):
        write_nifti(folder / inner / f"{name}.nii.gz", organ.astype(np.uint8) * 255, AFFINE)
    return folder


def test_folders_with_a_file_per_organ_that_overlap(tmp_path: Path) -> None:
    for reader in ("one", "two"):
        _write_organs(tmp_path / reader / "a", _mask(0))
        write_nifti(tmp_path / reader / "a" / "ct.nii.gz", blobs(SHAPE)[0], AFFINE)
    _write_organs(tmp_path / "one" / "b", _mask(1), inner="Masks")
    _write_organs(tmp_path / "two" / "b", np.roll(_mask(1), 1, axis=1))
    out = tmp_path / "out"
    result = evaluate(tmp_path / "one", tmp_path / "two", out)
    assert list(result["cases"]) == ["a", "b"]
    assert [row["name"] for row in result["labels"].values()] == ["body", "high", "low"]
    assert result["labels"]["1"]["dice"] == 1.0
    assert 0.3 < result["cases"]["b"]["2"]["dice"] < 1.0 == result["cases"]["a"]["2"]["dice"]
    assert (out / "report.html").is_file()
    # The folders of two cases, whatever they are called; every folder with masks, if asked.
    alone = evaluate(tmp_path / "one" / "a", tmp_path / "two" / "b")
    assert list(alone["cases"]) == ["b"]
    for reader in ("three", "four"):
        _write_organs(tmp_path / reader, _mask(0), inner="x/y")
    told = evaluate(tmp_path / "three", tmp_path / "four", organs=True)
    assert list(told["cases"]) == ["x/y"]
    united = evaluate(tmp_path / "two", tmp_path / "two", labels="both=high+low")
    assert united["cases"]["a"]["1"]["reference_ml"] == pytest.approx(
        sum(result["cases"]["a"][value]["reference_ml"] for value in ("2", "3"))
    )


def test_organs_against_a_label_image(tmp_path: Path) -> None:
    labels = LabelSet.from_names({1: "low", 2: "high"})
    (tmp_path / "pred").mkdir()
    write_mask(tmp_path / "pred" / "a.nii.gz", Prediction(_mask(), Geometry(SHAPE, AFFINE), labels))
    _write_organs(tmp_path / "ref" / "a", _mask())
    result = evaluate(tmp_path / "pred", tmp_path / "ref")
    found = {row["name"]: row["dice"] for row in result["labels"].values()}
    assert found == {"low": 1.0, "high": 1.0, "body": 0.0}


def test_organs_of_one_case_on_two_grids(tmp_path: Path) -> None:
    for reader in ("one", "two"):
        _write_organs(tmp_path / reader / "a", _mask())
    moved = AFFINE.copy()
    moved[1, 3] += 4.0
    write_nifti(tmp_path / "one/a/segmentations/low.nii.gz", _mask() % 2, moved)
    with pytest.raises(InputError, match="that of the other organs"):
        evaluate(tmp_path / "one", tmp_path / "two")


def test_another_grid_when_asked(folders: tuple[Path, Path]) -> None:
    predictions, references = folders
    # Turned and cropped: every voxel of the reference has a voxel of its own in it.
    mask = np.pad(_mask(0), ((0, 0), (1, 2), (0, 0)))[::-1]
    affine = AFFINE @ np.array(
        [[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, -1], [0, 0, 1, 0], [0, 0, 0, 1.0]]
    )
    write_nifti(predictions / "a.nii.gz", np.ascontiguousarray(mask), affine)
    assert list(evaluate(predictions, references)["failed"]) == ["a"]
    result = evaluate(predictions, references, resample="nearest")
    assert result["failed"] == {}
    assert result["mean"]["dice"] == 1.0
    with pytest.raises(SettingsError, match="nearest"):
        evaluate(predictions, references, resample="linear")


def test_two_models_a_second_reader_and_groups(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = folders
    other = _write(tmp_path / "other", "a", "b", shift=1)
    groups = tmp_path / "groups.csv"
    groups.write_text("case,site,group\na,x,old\nb,y,new\ndeep/c,y,new\n")
    out = tmp_path / "out"
    result = evaluate(
        predictions, references, out, against=other, second_reader=other, groups=groups,
        lesions="*", tables=["md", "tex"],
    )  # fmt: skip
    found = result["comparison"]
    assert found["against"] == "other"
    assert found["cases"] == 2
    assert found["mean"]["dice"]["mean_difference"] < 0
    assert found["mean"]["dice"]["lower"] == 2
    assert found["mean"]["hd95_mm"]["mean_difference"] > 0
    assert {row["case"] for row in found["changed"]} == {"a", "b"}
    reader = result["second_reader"]
    assert reader["cases"] == 2
    assert reader["mean"]["dice"] == pytest.approx(
        evaluate(other, references, allow_missing=True)["mean"]["dice"]
    )
    assert {name: group["cases"] for name, group in result["groups"].items()} == {
        "old": 1, "new": 2,
    }  # fmt: skip
    assert result["mean"]["lesion_f1"] == 1.0
    assert "lesion_f1" in (out / "metrics.csv").read_text().partition("\n")[0]
    assert (out / "summary.md").read_text().startswith("| label | Dice | Dice of second reader")
    assert (out / "summary.tex").is_file()
    page = (out / "report.html").read_text(encoding="utf-8")
    for text in ("Compared with other", "Groups", "Distributions", 'data-layer="1"'):
        assert text in page
    with pytest.raises(LabelError, match="names"):
        evaluate(predictions, references, lesions="tumour")


def test_calibration_of_probabilities(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for number, case in enumerate(("a", "b")):
        hot = np.stack([_mask(number) == value for value in (0, 1, 2)], axis=-1)
        # Always right with 0.8, so that the gap is 0.2 everywhere.
        write_nifti(tmp_path / "p" / f"{case}.nii.gz", (0.7 * hot + 0.1).astype(np.float32), AFFINE)
    out = tmp_path / "out"
    result = evaluate(*folders, out, probabilities=tmp_path / "p")
    assert result["calibration"]["cases"] == pytest.approx({"a": 0.2, "b": 0.2}, abs=1e-6)
    assert "calibration error over 2 cases: 0.2000" in (out / "report.html").read_text()
    write_nifti(tmp_path / "p" / "a.nii.gz", np.zeros(SHAPE, dtype=np.float32), AFFINE)
    with pytest.raises(LabelError, match="3 channels"):
        evaluate(*folders, probabilities=tmp_path / "p")
    with pytest.raises(InputError, match="case ids"):
        evaluate(*folders, probabilities=_write(tmp_path / "q", "z"))


def test_groups_from_folds_and_bad_tables(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    path.write_text('[{"val": ["a"]}, {"validation": ["b"]}]')
    assert read_groups(path) == {"a": "fold 0", "b": "fold 1"}
    table = tmp_path / "groups.tsv"
    table.write_text("a\tx\nb\ty\n")
    assert read_groups(table) == {"a": "x", "b": "y"}
    for text in ("a\n", ""):
        table.write_text(text)
        with pytest.raises(FileError, match="groups"):
            read_groups(table)
    path.write_text("{")
    with pytest.raises(FileError, match="val"):
        read_groups(path)
    with pytest.raises(FileError, match="No such file"):
        read_groups(tmp_path / "absent.csv")


@pytest.mark.parametrize("wrong", [-1.0, 1.5, np.nan])
def test_masks_that_hold_no_labels(tmp_path: Path, wrong: float) -> None:
    references = _write(tmp_path / "ref", "a", "b")
    predictions = _write(tmp_path / "pred", "a", "b")
    mask = _mask().astype(np.float32)
    mask[1, 2, 3] = wrong
    write_nifti(predictions / "b.nii.gz", mask, AFFINE)
    result = evaluate(predictions, references)
    assert list(result["failed"]) == ["b"]
    write_nifti(predictions / "b.nii.gz", _mask(1).astype(np.float32), AFFINE)
    assert evaluate(predictions, references)["mean"]["dice"] == 1.0


def test_real_masks_against_themselves(shared_data: Callable[[str], Path]) -> None:
    labels = shared_data("hippocampus") / "labelsTr"
    few = sorted(path.name.removesuffix(".nii.gz") for path in labels.glob("*.nii.gz"))[:4]
    result = evaluate(labels, labels, cases=few)
    assert [row["name"] for row in result["labels"].values()] == ["Anterior", "Posterior"]
    assert result["mean"]["dice"] == 1.0


def test_a_file_that_crashes_its_reader_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "_START", worker_with_faults(mask="mask_or_fail"))
    references = _write(tmp_path / "references", "good", "segfault")
    (tmp_path / "predictions").mkdir()
    for name in ("good", "segfault"):
        mask = sitk.ReadImage(str(references / f"{name}.nii.gz"))
        sitk.WriteImage(mask, str(tmp_path / "predictions" / f"{name}.nrrd"))
    result = evaluate(tmp_path / "predictions", references, tmp_path / "out")
    assert list(result["cases"]) == ["good"]
    assert list(result["failed"]) == ["segfault"]
    assert "the reader crashed on this file (SIGSEGV)" in result["failed"]["segfault"]
    assert result["mean"]["dice"] == 1.0
