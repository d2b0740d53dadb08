"""A table whose images are DICOM folders and zips, its masks NIfTI on the same grid."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from medseg.core.errors import InputError
from medseg.datasets.inspect import verify_cases
from medseg.datasets.open import open_dataset
from medseg.datasets.reading import read_case_image
from medseg.datasets.splits import folds
from medseg.training.cache import build_cache
from medseg.workflows.check import check
from medseg.workflows.convert import convert
from medseg.workflows.train import train
from tests.dicom_phantoms import STUDY, Series
from tests.models import small_plan
from tests.phantoms import blobs, write_nifti

SHAPE = (18, 16, 12)


def write_case(folder: Path, name: str, seed: int, *, study: str = "") -> None:
    """The same scan as a DICOM folder, a zip and NIfTI, and its mask."""
    voxels, mask = blobs(SHAPE, seed=seed)
    series = Series(
        voxels, spacing_mm=(1.5, 2.0, 3.5), uid=f"{STUDY}.{seed}.1",
        tags={"StudyInstanceUID": f"{STUDY}.{study or seed}"},
    )  # fmt: skip
    home = series.write(folder / "dicom" / name)
    with zipfile.ZipFile(folder / "dicom" / f"{name}.zip", "w") as archive:
        for path in home.iterdir():
            archive.write(path, path.name)
    write_nifti(folder / "nifti" / f"{name}.nii.gz", voxels, series.affine_ras())
    write_nifti(folder / "masks" / f"{name}.nii.gz", mask, series.affine_ras())


def write_table(folder: Path, images: dict[str, str], name: str = "dataset") -> Path:
    rows = [f"{case},{image},masks/{case}.nii.gz" for case, image in images.items()]
    (folder / "labels.csv").write_text("value,name\n1,low\n2,high\n")
    path = folder / f"{name}.csv"
    path.write_text("\n".join(["case,image,label", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for part in ("dicom", "nifti", "masks"):
        (folder / part).mkdir()
    for seed in range(1, 6):
        # The first two are of one study.
        write_case(folder, f"c{seed}", seed, study="77" if seed < 3 else "")
    images = {f"c{n}": f"dicom/c{n}" for n in range(1, 5)} | {"c5": "dicom/c5.zip"}
    write_table(folder, images)
    write_table(folder, {f"c{n}": f"nifti/c{n}.nii.gz" for n in range(1, 6)}, "nifti")
    return folder


def test_preprocessed_as_nifti_is(folder: Path, tmp_path: Path) -> None:
    dicom, nifti = open_dataset(folder), open_dataset(folder / "nifti.csv")
    assert dicom.modalities == ("CT",)
    inspection = verify_cases(dicom.cases, dicom)
    assert not inspection.problems
    plan = small_plan()
    one = build_cache(tmp_path / "dicom", dicom.cases, plan)
    two = build_cache(tmp_path / "nifti", nifti.cases, plan)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a.image, b.image, atol=1e-4)
        np.testing.assert_array_equal(a.label, b.label)


def test_a_slice_that_changes_is_preprocessed_again(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "dicom" / "c3", tmp_path / "dicom" / "c3")
    shutil.copytree(folder / "masks", tmp_path / "masks")
    table = write_table(tmp_path, {"c3": "dicom/c3"})
    before = np.array(build_cache(tmp_path / "c", open_dataset(table).cases, small_plan())[0].image)
    voxels = blobs(SHAPE, seed=9)[0]
    shutil.rmtree(tmp_path / "dicom" / "c3")
    Series(voxels, spacing_mm=(1.5, 2.0, 3.5)).write(tmp_path / "dicom" / "c3")
    after = build_cache(tmp_path / "c", open_dataset(table).cases, small_plan())[0].image
    assert not np.allclose(before, after)


def test_scans_of_one_study_stay_on_one_side(folder: Path) -> None:
    dataset = open_dataset(folder)
    assert dataset.groups == {"c1": "c1", "c2": "c1"}
    for split in folds(dataset, seed=0):
        assert ("c1" in split.train) == ("c2" in split.train)
    # A group that is stated counts more than the study.
    text = "case,image,label,group\n"
    for n in (1, 2, 3):
        text += f"c{n},dicom/c{n},masks/c{n}.nii.gz,{'site' if n > 1 else ''}\n"
    (folder / "groups.csv").write_text(text)
    groups = open_dataset(folder / "groups.csv").groups
    assert groups == {"c1": "site", "c2": "site", "c3": "site"}


def test_a_column_for_the_series(tmp_path: Path) -> None:
    for number, name in enumerate(("T1", "T2"), start=1):
        voxels, mask = blobs(SHAPE, seed=number)
        series = Series(
            voxels, uid=f"{STUDY}.8.{number}", number=number,
            tags={"Modality": "MR", "SeriesDescription": f"{name} tra"},
        )  # fmt: skip
        series.write(tmp_path / "study" / name)
        write_nifti(tmp_path / "masks" / "a.nii.gz", mask, series.affine_ras())
    (tmp_path / "labels.csv").write_text("value,name\n1,low\n2,high\n")
    head = "case,image_T1,image_T2,label"
    rows = {
        "both.csv": f"{head},series_T1,series_T2\na,study,study,masks/a.nii.gz,1,T2*\n",
        "one.csv": "case,image,label,series\na,study,masks/a.nii.gz,2\n",
        "none.csv": "case,image,label\na,study,masks/a.nii.gz\n",
    }
    for name, text in rows.items():
        (tmp_path / name).write_text(text)
    both, one, none = (open_dataset(tmp_path / name) for name in rows)
    scan = read_case_image(both.cases[0])
    for channel, seed in enumerate((1, 2)):
        np.testing.assert_array_equal(scan.voxels()[channel], blobs(SHAPE, seed=seed)[0])
    assert one.modalities == ("MR",)
    np.testing.assert_array_equal(read_case_image(one.cases[0]).voxels()[0], scan.voxels()[1])
    with pytest.raises(InputError, match="one usable series"):
        read_case_image(none.cases[0])
    assert verify_cases(none.cases, none).problems


def test_check_and_convert(folder: Path, tmp_path: Path) -> None:
    report = check(folder, tmp_path / "report")
    assert not [f for f in report["findings"] if f["severity"] == "error"]
    convert(folder, tmp_path / "msd", to="msd")
    original, there = open_dataset(folder), open_dataset(tmp_path / "msd")
    for a, b in zip(original.cases, there.cases, strict=True):
        scan, again = read_case_image(a), read_case_image(b)
        np.testing.assert_array_equal(scan.voxels(), again.voxels())
        assert scan.geometry.difference(again.geometry) is None
        assert b.images[0].name.endswith(".nii.gz")
        assert a.group == b.group


def test_training(folder: Path, tmp_path: Path) -> None:
    done = train(folder, tmp_path / "run", epochs=1, fold="0", device="cpu", config="demo")
    assert done["metrics"]["mean"]["dice"] >= 0
    for path in (tmp_path / "run" / "validation").glob("c*.json"):
        assert len(json.loads(path.read_text())["input_sha256"]) == 1
