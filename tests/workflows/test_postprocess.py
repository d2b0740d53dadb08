"""Masks in, cleaned masks out: grid and type stay; steps that are learned, and used again."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.core.errors import InputError, LabelError, SettingsError
from medseg.core.labels import LabelSet
from medseg.workflows.postprocess import learn_chain, postprocess
from tests.phantoms import oblique_affine, write_nifti


def test_a_folder(tmp_path: Path) -> None:
    mask = np.zeros((9, 7, 5), np.int16)
    mask[1:4, 1:4, 1:4], mask[7, 5, 4], mask[2, 2, 2] = 300, 300, 0
    write_nifti(tmp_path / "in" / "a.nii.gz", mask, oblique_affine())
    write_nifti(tmp_path / "in" / "empty.nii", np.zeros_like(mask), oblique_affine())
    write_nifti(tmp_path / "in" / "other.nii", np.full_like(mask, 7), oblique_affine())
    write_nifti(tmp_path / "in" / "bad.nii", np.full((3, 3, 3), 0.5, np.float32), np.eye(4))
    found = postprocess(tmp_path / "in", tmp_path / "out", steps="largest:300; fill-holes:*")
    assert list(found["failed"]) == ["bad"]
    image = nib.load(tmp_path / "out" / "a.nii.gz")
    source = nib.load(tmp_path / "in" / "a.nii.gz")
    voxels = np.asarray(image.dataobj)
    assert voxels.dtype == np.int16
    assert (voxels == 300).sum() == 27
    np.testing.assert_array_equal(image.affine, source.affine)
    told = json.loads((tmp_path / "out" / "a.json").read_text())["steps"]
    assert told[0]["removed_mm3"] == {"300": pytest.approx(1.5 * 2 * 3.5, abs=1e-3)}
    # A mask without the label has nothing to be cleaned.
    for name in ("empty.nii", "other.nii"):
        before, after = (
            np.asarray(nib.load(tmp_path / side / name).dataobj) for side in ("in", "out")
        )
        np.testing.assert_array_equal(before, after)
    assert not (tmp_path / "out" / "bad.nii").exists()


def test_its_own_folder_is_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", np.ones((3, 3, 3), np.uint8), np.eye(4))
    with pytest.raises(InputError, match="a place of its own"):
        postprocess(tmp_path, tmp_path, steps="largest:1")


def write_pairs(folder: Path, cases: int = 6) -> tuple[Path, Path]:
    """References with one region of label 5, and predictions with strays of it."""
    predictions, references = folder / "predictions", folder / "references"
    for number in range(cases):
        mask = np.zeros((12, 9, 7), np.uint8)
        mask[2:7, 2:6, 1 + number % 2 : 5] = 5
        write_nifti(references / f"case_{number}.nii.gz", mask, oblique_affine())
        mask[10:, 7:, 6 - number % 3 :] = 5
        write_nifti(predictions / f"case_{number}.nii.gz", mask, oblique_affine())
    return predictions, references


def test_learned_and_used_again(tmp_path: Path) -> None:
    predictions, references = write_pairs(tmp_path)
    found = learn_chain(predictions, references, tmp_path / "chain.json")
    assert [step["step"] for step in found["steps"]] == ["largest:5"]
    assert "95 % interval" in found["steps"][0]["evidence"]
    assert (found["cases"], found["failed"]) == (6, {})
    done = postprocess(predictions, tmp_path / "out", steps=str(tmp_path / "chain.json"))
    assert len(done["cases"]) == 6
    for path in sorted(references.iterdir()):
        after = np.asarray(nib.load(tmp_path / "out" / path.name).dataobj)
        np.testing.assert_array_equal(after, np.asarray(nib.load(path).dataobj))


def test_labels_of_a_chain_are_found_by_name_or_value(tmp_path: Path) -> None:
    predictions, references = write_pairs(tmp_path)
    liver = LabelSet.from_names({5: "liver"})
    learn_chain(predictions, references, tmp_path / "chain.json", labels=liver)
    chain = str(tmp_path / "chain.json")
    postprocess(predictions / "case_0.nii.gz", tmp_path / "by_value", steps=chain)
    after = np.asarray(nib.load(tmp_path / "by_value" / "case_0.nii.gz").dataobj)
    assert not after[10:].any()
    (tmp_path / "unknown.json").write_text(
        json.dumps({"steps": [{"step": "largest", "label": "lung"}]})
    )
    with pytest.raises(LabelError, match="lung"):
        postprocess(
            references / "case_0.nii.gz", tmp_path / "x", steps=str(tmp_path / "unknown.json")
        )


def test_what_cannot_be_learned_or_read(tmp_path: Path) -> None:
    predictions, references = write_pairs(tmp_path, cases=3)
    assert learn_chain(predictions, references)["steps"] == []
    with pytest.raises(SettingsError, match=r"\.json"):
        learn_chain(predictions, references, tmp_path / "chain.txt")
    write_nifti(predictions / "case_0.nii.gz", np.ones((3, 4, 5), np.uint8), np.eye(4))
    assert list(learn_chain(predictions, references)["failed"]) == ["case_0"]
    for number in (1, 2):
        (predictions / f"case_{number}.nii.gz").write_bytes(b"no mask")
    with pytest.raises(InputError, match="all 3 cases failed"):
        learn_chain(predictions, references)
    (tmp_path / "bad.json").write_text('{"steps": [{"step": "largest"}]}')
    with pytest.raises(SettingsError, match="label"):
        postprocess(references, tmp_path / "x", steps=str(tmp_path / "bad.json"))
    with pytest.raises(SettingsError, match="--steps"):
        postprocess(references, tmp_path / "x", steps=str(tmp_path / "absent.json"))
    assert not (tmp_path / "x").exists()
