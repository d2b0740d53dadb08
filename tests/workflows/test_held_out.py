"""Post-processing learned on the masks of all folds."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from medseg.core.plan import Plan, edited
from medseg.datasets.open import open_dataset
from medseg.workflows.held_out import held_out_pair, learn_from_folds
from tests.models import small_plan
from tests.phantoms import write_msd_dataset, write_nifti


def plan_of_dataset() -> Plan:
    return edited(small_plan(), {"reasons": {}})


def write_fold(folder: Path, data: Path, cases: list[str], *, stray: bool) -> Path:
    """Predictions as a fold leaves them: the truth, with a far piece of label 1 or without."""
    for case in cases:
        truth = nib.load(data / "labelsTr" / f"{case}.nii.gz")
        mask = np.asarray(truth.dataobj).astype(np.uint8)
        if stray:
            mask[-3:, :2, :2] = 1
        write_nifti(folder / "validation" / f"{case}.nii.gz", mask, truth.affine)
    table = {"cases": {case: {} for case in cases}}
    (folder / "validation" / "metrics.json").write_text(json.dumps(table))
    return folder


def test_what_is_wrong_in_every_fold_is_mended(tmp_path: Path) -> None:
    data = write_msd_dataset(tmp_path / "data", cases=8, splits=False)
    dataset, plan = open_dataset(data), plan_of_dataset()
    names = [case.id for case in dataset.cases]
    folders = [write_fold(tmp_path / f"fold_{n}", data, names[n::2], stray=True) for n in range(2)]
    steps = learn_from_folds(dataset, plan, folders)
    assert {step.label for step in steps} == {"low"}
    assert {step.step for step in steps} <= {"largest", "min_volume", "min-volume"}
    assert all("8" in step.evidence for step in steps)


def test_what_is_right_is_left_alone(tmp_path: Path) -> None:
    data = write_msd_dataset(tmp_path / "data", cases=6, splits=False)
    dataset = open_dataset(data)
    folder = write_fold(tmp_path / "fold_0", data, [case.id for case in dataset.cases], stray=False)
    assert learn_from_folds(dataset, plan_of_dataset(), [folder]) == ()


def test_a_pair_shows_what_nobody_labelled_as_background_in_both(tmp_path: Path) -> None:
    data = write_msd_dataset(tmp_path / "data", cases=5, splits=False)
    dataset = open_dataset(data)
    case = dataset.cases[1]
    folder = write_fold(tmp_path / "fold_0", data, [case.id], stray=True)
    plain = held_out_pair(case, plan_of_dataset(), folder / "validation")
    truth = np.asarray(nib.load(data / "labelsTr" / f"{case.id}.nii.gz").dataobj)
    np.testing.assert_array_equal(plain.reference, truth)
    assert (plain.prediction != plain.reference).sum() == 12
    # Label 2 of the file becomes the value to be ignored.
    one = {"labels": plan_of_dataset().labels.select(["low"]).model_dump(), "network.classes": 2}
    plan = edited(plan_of_dataset(), {**one, "ignore": 2})
    pair = held_out_pair(case, plan, folder / "validation")
    assert not pair.prediction[truth == 2].any()
    assert set(np.unique(pair.reference)) == {0, 1}
