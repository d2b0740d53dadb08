from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.core.errors import DatasetError, MedsegError
from medseg.datasets.dataset import Dataset
from medseg.datasets.inspect import verify_case, verify_cases
from medseg.datasets.msd import read_msd
from tests.phantoms import write_msd_dataset, write_nifti


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return read_msd(write_msd_dataset(tmp_path / "blobs", cases=4, shape=(13, 11, 9)))


def mask_of(dataset: Dataset, number: int) -> tuple[Path, np.ndarray, np.ndarray]:
    path = dataset.cases[number].label
    assert path is not None
    image = nib.load(path)
    return path, np.asarray(image.dataobj), image.affine


def test_facts_of_a_good_case(dataset: Dataset) -> None:
    facts = verify_case(dataset.cases[1], dataset)
    _, mask, _ = mask_of(dataset, 1)
    assert facts.id == "case_001"
    assert facts.geometry.shape == mask.shape
    assert facts.dtype == "int16"
    assert facts.label_voxels == {1: int((mask == 1).sum()), 2: int((mask == 2).sum())}


def test_a_label_may_be_absent_in_a_case(dataset: Dataset) -> None:
    path, mask, affine = mask_of(dataset, 0)
    write_nifti(path, np.where(mask == 2, 0, mask).astype(np.uint8), affine)
    assert verify_case(dataset.cases[0], dataset).label_voxels[2] == 0


def test_shape(dataset: Dataset) -> None:
    path, mask, affine = mask_of(dataset, 0)
    write_nifti(path, mask[:-1], affine)
    with pytest.raises(DatasetError, match=r"case_000.*grid of its image.*shape"):
        verify_case(dataset.cases[0], dataset)


def test_affine(dataset: Dataset) -> None:
    path, mask, affine = mask_of(dataset, 0)
    moved = affine.copy()
    moved[1, 3] += 4.5
    write_nifti(path, mask, moved)
    with pytest.raises(DatasetError, match=r"4\.5 mm apart"):
        verify_case(dataset.cases[0], dataset)


@pytest.mark.parametrize("value", [7, 70000])
def test_unknown_value(dataset: Dataset, value: int) -> None:
    path, mask, affine = mask_of(dataset, 0)
    strange = mask.astype(np.int32)
    strange[0, 0, 0] = value
    write_nifti(path, strange, affine)
    with pytest.raises(DatasetError, match=f"1 low, 2 high, got also {value}"):
        verify_case(dataset.cases[0], dataset)


def test_empty_mask(dataset: Dataset) -> None:
    path, mask, affine = mask_of(dataset, 0)
    write_nifti(path, np.zeros_like(mask), affine)
    with pytest.raises(DatasetError, match="at least one voxel"):
        verify_case(dataset.cases[0], dataset)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite(dataset: Dataset, value: float) -> None:
    path = dataset.cases[0].images[0]
    image = nib.load(path)
    voxels = np.asarray(image.dataobj).astype(np.float32)
    voxels[2, 3, :2] = value
    write_nifti(path, voxels, image.affine)
    with pytest.raises(DatasetError, match=r"finite voxels, got 2 of \d+"):
        verify_case(dataset.cases[0], dataset)


def test_channels(tmp_path: Path) -> None:
    folder = write_msd_dataset(tmp_path, cases=1, shape=(6, 5, 4), channels=("T1", "T2"))
    two = read_msd(folder)
    assert verify_case(two.cases[0], two).geometry.shape == (6, 5, 4)
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text.replace('"T2"', '"T2", "2": "T1c"'))
    three = read_msd(folder)
    with pytest.raises(DatasetError, match=r"3 channels.*T1, T2, T1c.*got 2"):
        verify_case(three.cases[0], three)


def test_all_cases_are_looked_at(dataset: Dataset) -> None:
    path, mask, affine = mask_of(dataset, 1)
    write_nifti(path, np.zeros_like(mask), affine)
    dataset.cases[3].images[0].write_bytes(dataset.cases[3].images[0].read_bytes()[:60])
    seen: list[tuple[int, int, str]] = []
    found = verify_cases(
        dataset.cases, dataset, workers=3, progress=lambda *step: seen.append(step)
    )
    assert [facts.id for facts in found.facts] == ["case_000", "case_002"]
    assert list(found.problems) == ["case_001", "case_003"]
    assert [step[:2] for step in seen] == [(n, 4) for n in range(1, 5)]
    assert {step[2] for step in seen} == {case.id for case in dataset.cases}
    with pytest.raises(MedsegError, match=r"at least one voxel.*1 more of 4 cases"):
        found.raise_problems()


def test_nothing_to_tell(dataset: Dataset) -> None:
    verify_cases(dataset.cases, dataset).raise_problems()
