"""Masks written by slab: the same file as from the whole mask, once unpacked."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medseg.core.errors import InputError
from medseg.core.labels import LabelSet
from medseg.core.results import Prediction
from medseg.io.formats import read_scan, write_mask
from medseg.io.nifti_slabs import write_nifti_mask_slabs
from tests.phantoms import lopsided_geometry, lopsided_volume, oblique_affine

SHAPE = (11, 8, 6)
LABELS = LabelSet.from_names({1: "liver", 2: "spleen", 300: "other"})


def prediction(dtype: Any, *, path: Path | None = None) -> Prediction:
    mask = np.random.default_rng(0).choice([0, 1, 2], SHAPE).astype(dtype)
    forms = None if path is None else read_scan(path).forms
    return Prediction(mask, lopsided_geometry(SHAPE), LABELS, forms=forms)


def frame_of(whole: Prediction) -> Prediction:
    return replace(whole, labels=np.broadcast_to(whole.labels.dtype.type(0), whole.labels.shape))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("forms", [False, True])
def test_the_bytes_are_those_of_the_whole_mask(tmp_path: Path, dtype: Any, forms: bool) -> None:
    scan = tmp_path / "scan.nii"
    image = nib.Nifti1Image(lopsided_volume(SHAPE)[0], oblique_affine())
    image.set_qform(oblique_affine(origin_mm=(1.0, 2.0, 3.3)), code=3)
    nib.save(image, scan)
    whole = prediction(dtype, path=scan if forms else None)
    for order in "CF":
        parts = [np.array(whole.labels[..., at : at + 4], order=order) for at in (0, 4)]
        for name in ("a.nii", "a.nii.gz"):
            write_nifti_mask_slabs(tmp_path / name, frame_of(whole), iter(parts))
            write_mask(tmp_path / f"whole_{name}", whole)
        expected = (tmp_path / "whole_a.nii").read_bytes()
        assert (tmp_path / "a.nii").read_bytes() == expected
        assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes()) == expected
        assert gzip.decompress((tmp_path / "whole_a.nii.gz").read_bytes()) == expected
    assert np.array_equal(np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj), whole.labels)
    seen = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii.gz")))
    assert np.array_equal(seen.transpose(2, 1, 0), whole.labels)


def test_equal_masks_are_equal_files(tmp_path: Path) -> None:
    whole = prediction(np.uint8)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti_mask_slabs(tmp_path / name, frame_of(whole), [whole.labels])
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_slabs_that_do_not_fit_leave_the_old_file(tmp_path: Path) -> None:
    path, whole = tmp_path / "mask.nii.gz", prediction(np.uint8)
    path.write_bytes(b"old")
    labels = whole.labels
    for parts in ([labels[..., :5]], [labels, labels[..., :1]], [labels[:10]],
                  [labels.astype(np.int16)]):  # fmt: skip
        with pytest.raises(InputError, match="slabs of a mask"):
            write_nifti_mask_slabs(path, frame_of(whole), parts)
        assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["mask.nii.gz"]
