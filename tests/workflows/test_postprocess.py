"""Masks in, cleaned masks out: grid and type stay."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.core.errors import InputError
from medseg.workflows.postprocess import postprocess
from tests.phantoms import oblique_affine, write_nifti


def test_a_folder(tmp_path: Path) -> None:
    mask = np.zeros((9, 7, 5), np.int16)
    mask[1:4, 1:4, 1:4], mask[7, 5, 4], mask[2, 2, 2] = 300, 300, 0
    write_nifti(tmp_path / "in" / "a.nii.gz", mask, oblique_affine())
    write_nifti(tmp_path / "in" / "empty.nii", np.zeros_like(mask), oblique_affine())
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
    assert (tmp_path / "out" / "empty.nii").is_file()
    assert not (tmp_path / "out" / "bad.nii").exists()


def test_its_own_folder_is_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", np.ones((3, 3, 3), np.uint8), np.eye(4))
    with pytest.raises(InputError, match="another folder"):
        postprocess(tmp_path, tmp_path, steps="largest:1")
