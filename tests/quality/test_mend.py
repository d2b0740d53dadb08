"""What can be mended is mended, the rest is left out and listed, and the source stays."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medseg.core.errors import DatasetError, InputError
from medseg.datasets.open import open_dataset
from medseg.datasets.reading import read_case_image, read_case_mask
from medseg.workflows.check import check
from tests.phantoms import write_msd_dataset, write_nifti


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_msd_dataset(tmp_path / "a", cases=9, shape=(24, 20, 16))


def path_of(folder: Path, number: int, kind: str = "labelsTr") -> Path:
    return folder / kind / f"case_{number:03d}.nii.gz"


def load(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    image = nib.load(path)
    return np.asarray(image.dataobj).copy(), image.affine


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_mended_or_left_out(folder: Path, tmp_path: Path) -> None:
    mask, affine = load(path_of(folder, 0))
    truth = mask.copy()
    write_nifti(path_of(folder, 0), np.where(mask == 2, 1.99999997, mask), affine)
    mask_1, affine = load(path_of(folder, 1))
    affine[1, 3] += 0.3
    write_nifti(path_of(folder, 1), mask_1, affine)
    image, affine = load(path_of(folder, 2, "imagesTr"))
    image = image.astype(np.float32)
    image[3, 4, 5] = np.nan
    write_nifti(path_of(folder, 2, "imagesTr"), image, affine)
    mask_3, affine = load(path_of(folder, 3))
    write_nifti(path_of(folder, 3), np.where(mask_3 == 1, 7, mask_3).astype(np.uint8), affine)
    path_of(folder, 4, "imagesTr").write_bytes(b"")
    mask_5, affine = load(path_of(folder, 5))
    affine[:3, 3] -= affine[:3, :3] @ [1, 0, 0]
    write_nifti(path_of(folder, 5), np.pad(mask_5, ((1, 0), (0, 0), (0, 0))), affine)
    mask_6, affine = load(path_of(folder, 6))
    affine[1, 3] += 40
    write_nifti(path_of(folder, 6), mask_6, affine)
    before = contents(folder)

    result = check(folder, tmp_path / "b", fix=True)

    assert contents(folder) == before
    log = json.loads((tmp_path / "b" / "mended.json").read_text())
    assert log == result["mended"]
    assert {row["case"] for row in log["changes"]} == {
        "case_000", "case_001", "case_002", "case_005", "dataset",
    }  # fmt: skip
    assert {row["case"]: row["reason"].split(":")[0] for row in log["left_out"]} == {
        "case_003": "unknown-label", "case_004": "unreadable", "case_006": "grid-position",
    }  # fmt: skip
    mended = open_dataset(tmp_path / "b")
    cases = {case.id: case for case in mended.cases}
    assert sorted(cases) == [f"case_{n:03d}" for n in (0, 1, 2, 5, 7, 8)]
    np.testing.assert_array_equal(read_case_mask(cases["case_000"])[0], truth)
    np.testing.assert_array_equal(read_case_mask(cases["case_001"])[0], mask_1)
    np.testing.assert_array_equal(read_case_mask(cases["case_005"])[0], mask_5)
    voxels = read_case_image(cases["case_002"]).voxels()[0]
    assert voxels[3, 4, 5] == np.nanmin(image)
    voxels[3, 4, 5] = image[3, 4, 5] = 0
    np.testing.assert_array_equal(voxels, image)
    assert mended.splits is not None
    assert set(mended.splits[0].validation) == {"case_007", "case_008"}
    again = check(tmp_path / "b")
    assert again["counts"]["error"] == 0
    assert (tmp_path / "b" / "check.html").is_file()


def test_one_of_two_copies_is_kept(folder: Path, tmp_path: Path) -> None:
    for kind in ("imagesTr", "labelsTr"):
        path_of(folder, 8, kind).write_bytes(path_of(folder, 1, kind).read_bytes())
    path_of(folder, 7, "imagesTr").write_bytes(path_of(folder, 3, "imagesTr").read_bytes())
    result = check(folder, tmp_path / "b", fix=True)
    reasons = {row["case"]: row["reason"] for row in result["mended"]["left_out"]}
    assert reasons["case_008"] == "a copy of case_001"
    assert "case_001" not in reasons
    # One scan with two masks: nobody can say which is right.
    assert {"case_003", "case_007"} <= set(reasons)


def test_a_mask_of_0_and_255(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("images", "labels"):
        (tmp_path / "a" / name).mkdir(parents=True)
    for number in range(3):
        picture = rng.integers(0, 255, (12, 9), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "a" / "images" / f"{number}.png")
        mask = (picture > 120).astype(np.uint8) * (255 if number == 1 else 1)
        Image.fromarray(mask).save(tmp_path / "a" / "labels" / f"{number}.png")
    (tmp_path / "a" / "labels.csv").write_text("value,name\n1,cell\n")
    result = check(tmp_path / "a", tmp_path / "b", fix=True)
    assert [(row["case"], row["change"]) for row in result["mended"]["changes"]] == [
        ("1", "255 became 1")
    ]
    there, here = open_dataset(tmp_path / "b"), open_dataset(tmp_path / "a")
    for old, new in zip(here.cases, there.cases, strict=True):
        np.testing.assert_array_equal(
            read_case_mask(old)[0] > 0, read_case_mask(new)[0] == 1, err_msg=old.id
        )


def test_never_in_place(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    for out in (None, folder, tmp_path):
        with pytest.raises(InputError, match="--fix"):
            check(folder, out, fix=True)
    with pytest.raises(InputError, match="inside"):
        check(folder, folder / "mended", fix=True)
    assert contents(folder) == before


def test_nothing_left(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "imagesTr").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match="got none"):
        check(folder, tmp_path / "b", fix=True)
    assert not (tmp_path / "b").exists()
