"""Evaluate references with regions that overlap and with voxels that are to be ignored."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from medseg.cli.app import app
from medseg.core.errors import LabelError, SettingsError
from medseg.core.labels import LabelSet
from medseg.workflows.evaluate import evaluate
from tests.phantoms import oblique_affine, write_nifti

SHAPE = (13, 10, 7)
AFFINE = oblique_affine()
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
SETS = {"1": (1, 2, 3), "2": (2, 3), "3": (3,)}
# The reference of the second case has no voxel to be ignored.
TOPS = {"a": 5, "deep/b": 4}


def chance(seed: int, top: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, top, SHAPE).astype(np.uint8)


def dataset(folder: Path, labels: dict[str, Any], **more: Any) -> Path:
    """References in the layout of nnU-Net; their images are not needed."""
    for number, (case, top) in enumerate(TOPS.items()):
        write_nifti(folder / "labelsTr" / f"{case}.nii.gz", chance(number, top), AFFINE)
    write_nifti(folder / "imagesTr" / "a_0000.nii.gz", chance(0, 9), AFFINE)
    text = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", **more}
    (folder / "dataset.json").write_text(json.dumps(text))
    return folder


@pytest.fixture
def said(tmp_path: Path) -> Path:
    """Predictions, which never hold the value to be ignored."""
    for number, case in enumerate(TOPS):
        write_nifti(tmp_path / "said" / f"{case}.nii.gz", chance(9 + number, 4), AFFINE)
    return tmp_path / "said"


def by_definition(number: int, top: int, values: tuple[int, ...], ignore: int) -> dict[str, float]:
    """Dice and kappa of a set of values over the voxels that count."""
    counts = chance(number, top) != ignore
    truth, found = (
        np.isin(mask, values)[counts] for mask in (chance(number, top), chance(9 + number, 4))
    )
    agreed = (truth == found).mean()
    by_luck = truth.mean() * found.mean() + (1 - truth.mean()) * (1 - found.mean())
    return {
        "dice": 2 * (truth & found).sum() / (truth.sum() + found.sum()),
        "kappa": (agreed - by_luck) / (1 - by_luck),
    }


def test_regions_are_sets_and_ignored_voxels_count_nowhere(tmp_path: Path, said: Path) -> None:
    data = dataset(tmp_path / "data", REGIONS, regions_class_order=[1, 2, 3])
    out = tmp_path / "out"
    result = evaluate(said, data, out, lesions="core")
    assert [row["name"] for row in result["labels"].values()] == ["whole", "core", "enhancing"]
    for number, (case, top) in enumerate(TOPS.items()):
        for value, values in SETS.items():
            expected = by_definition(number, top, values, 4)
            found = result["cases"][case][value]
            assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert "4" in result["definitions"]["ignore"]
    assert "count as empty" in (out / "report.html").read_text()
    core = evaluate(said, data, labels="core")
    assert list(core["labels"]) == ["2"]
    assert core["labels"]["2"]["nsd"] == result["labels"]["2"]["nsd"]
    # What a label set says is plain; what nobody looked at is still left out.
    plain = evaluate(said, data, labels=LabelSet.from_names({2: "two"}))
    dice = plain["cases"]["a"]["2"]["dice"]
    assert dice == pytest.approx(by_definition(0, 5, (2,), 4)["dice"])


def test_values_that_paint_regions_need_not_be_those_of_the_dataset(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    data = dataset(tmp_path / "data", labels, regions_class_order=[5, 6])
    truth = chance(0, 5)
    painted = np.select([truth == 2, truth == 1], [6, 5], 0).astype(np.uint8)
    for how, mask in (("painted", painted), ("values", truth)):
        write_nifti(tmp_path / how / "a.nii.gz", mask, AFFINE)
        result = evaluate(tmp_path / how, data, cases=["a"])
        assert {row["name"]: row["dice"] for row in result["labels"].values()} == {
            "whole": 1.0, "core": 1.0,
        }  # fmt: skip
    for name, mask in (("whole", np.isin(truth, (1, 2))), ("core", truth == 2)):
        folder = tmp_path / "single" / "a" / "segmentations"
        write_nifti(folder / f"{name}.nii.gz", mask.astype(np.uint8), AFFINE)
    result = evaluate(tmp_path / "single", data, cases=["a"])
    assert result["mean"]["dice"] == 1.0


def test_regions_without_an_order_are_told(
    tmp_path: Path, said: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = dataset(tmp_path / "data", REGIONS)
    with caplog.at_level(logging.WARNING, logger="medseg"):
        result = evaluate(said, data)
    assert any("not scored as such" in record.message for record in caplog.records)
    assert list(result["labels"]) == ["1", "2", "3"]


def test_a_value_can_be_named_where_no_dataset_does(tmp_path: Path, said: Path) -> None:
    references = dataset(tmp_path / "data", {"one": 1}) / "labelsTr"
    (references.parent / "dataset.json").unlink()
    result = evaluate(said, references, ignore=4)
    for number, (case, top) in enumerate(TOPS.items()):
        for value in (1, 2, 3):
            expected = by_definition(number, top, (value,), 4)
            found = result["cases"][case][str(value)]
            assert {key: found[key] for key in expected} == pytest.approx(expected)
    command = ["evaluate", str(said), str(references), "--ignore", "4", "--json"]
    again = CliRunner().invoke(app, command)
    assert json.loads(again.stdout)["mean"] == result["mean"]
    with pytest.raises(SettingsError, match="no label"):
        evaluate(said, references, ignore=2, labels=LabelSet.from_names({2: "two"}))
    # A case that nobody looked at says nothing.
    write_nifti(tmp_path / "none" / "a.nii.gz", np.full(SHAPE, 4, np.uint8), AFFINE)
    empty = evaluate(said, tmp_path / "none", ignore=4, cases=["a"])
    assert empty["mean"].get("dice") is None


def test_probabilities_count_where_somebody_looked(tmp_path: Path, said: Path) -> None:
    references = dataset(tmp_path / "data", {"a": 1, "b": 2, "c": 3, "ignore": 4})
    for number, (case, top) in enumerate(TOPS.items()):
        truth = chance(number, top)
        hot = np.stack([np.where(truth == 4, 1, truth) == value for value in range(4)], axis=-1)
        # Right with 0.7 where somebody looked; what it says of the rest must not count.
        sure = np.where((truth == 4)[..., None], hot, 0.6 * hot + 0.1)
        write_nifti(tmp_path / "p" / f"{case}.nii.gz", sure.astype(np.float32), AFFINE)
    result = evaluate(said, references, probabilities=tmp_path / "p")
    assert result["calibration"]["cases"] == pytest.approx(dict.fromkeys(TOPS, 0.3), abs=1e-6)
    regions = dataset(tmp_path / "more", REGIONS, regions_class_order=[1, 2, 3])
    with pytest.raises(LabelError, match="exclude one another"):
        evaluate(said, regions, probabilities=tmp_path / "p")


def test_ignored_voxels_and_regions_on_another_grid(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", REGIONS, regions_class_order=[1, 2, 3])
    shifted = AFFINE.copy()
    shifted[:3, 3] -= AFFINE[:3, 0]  # a row of voxels more at the beginning
    truth = np.where(chance(0, 5) == 4, 1, chance(0, 5)).astype(np.uint8)
    write_nifti(tmp_path / "said" / "a.nii.gz", np.pad(truth, ((1, 0), (0, 0), (0, 0))), shifted)
    result = evaluate(tmp_path / "said", data, cases=["a"], resample="nearest")
    assert result["mean"]["dice"] == 1.0
