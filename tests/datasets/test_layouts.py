"""Every layout of the same data is read as the same data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medseg.core.errors import DatasetError, MedsegError
from medseg.core.plan import ChannelPlan, Plan
from medseg.datasets.dataset import Dataset, OrganMask, Region, Split
from medseg.datasets.open import open_dataset
from medseg.datasets.reading import read_case_image, read_case_mask
from medseg.training.cache import CachedCase, build_cache
from tests.models import small_plan
from tests.phantoms import blobs, oblique_affine, write_msd_dataset, write_nifti

CHANNELS = ("T1", "FLAIR")


@pytest.fixture
def msd(tmp_path: Path) -> Path:
    """Three cases of two channels, lopsided."""
    folder = write_msd_dataset(tmp_path / "msd", cases=3, shape=(13, 11, 9), channels=CHANNELS)
    for path in (folder / "imagesTr").glob("*.nii.gz"):
        image = nib.load(path)
        voxels = np.asarray(image.dataobj).copy()
        voxels[..., 1] = 500 - voxels[..., 0] // 2  # so that an exchange of channels shows
        write_nifti(path, voxels, image.affine)
    return folder


def parts(msd: Path) -> dict[str, tuple[list[nib.Nifti1Image], nib.Nifti1Image]]:
    """Each case of the MSD dataset as images of one channel and a mask."""
    found = {}
    for path in sorted((msd / "imagesTr").glob("*.nii.gz")):
        image, mask = nib.load(path), nib.load(msd / "labelsTr" / path.name)
        voxels = np.asarray(image.dataobj)
        single = [nib.Nifti1Image(voxels[..., c], image.affine, image.header) for c in range(2)]
        found[path.name.removesuffix(".nii.gz")] = single, mask
    return found


def save(image: nib.Nifti1Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def as_nnunet(msd: Path, out: Path) -> Path:
    for name, (images, mask) in parts(msd).items():
        for number, image in enumerate(images):
            save(image, out / "imagesTr" / f"{name}_{number:04d}.nii.gz")
        save(mask, out / "labelsTr" / f"{name}.nii.gz")
    about = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "low": 1, "high": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (out / "dataset.json").write_text(json.dumps(about))
    return out


def as_table(msd: Path, out: Path) -> Path:
    rows = ["case;image_T1;image_FLAIR;label;patient"]
    for name, (images, mask) in parts(msd).items():
        for image, channel in zip(images, CHANNELS, strict=True):
            save(image, out / "scans" / name / f"{channel}.nii.gz")
        save(mask, out / "scans" / name / "mask.nii.gz")
        where = f"scans/{name}"
        rows.append(f"{name};{where}/T1.nii.gz;{where}/FLAIR.nii.gz;{where}/mask.nii.gz;p-{name}")
    (out / "dataset.csv").write_text("\n".join(rows))
    (out / "labels.csv").write_text("Value,Name\n1,low\n2,high\n")
    return out


def as_json_table(msd: Path, out: Path) -> Path:
    as_table(msd, out)
    (out / "dataset.csv").unlink()
    cases = [
        {
            "id": name,
            "image": {c: f"scans/{name}/{c}.nii.gz" for c in CHANNELS},
            "label": f"scans/{name}/mask.nii.gz",
        }
        for name in parts(msd)
    ]
    (out / "cases.json").write_text(
        json.dumps({"labels": {"1": "low", "2": "high"}, "cases": cases})
    )
    return out


def as_organs(msd: Path, out: Path) -> Path:
    for name, (images, mask) in parts(msd).items():
        for image, channel in zip(images, ("t1", "flair"), strict=True):
            save(image, out / name / f"{channel}.nii.gz")
        values = np.asarray(mask.dataobj)
        for value, organ in ((1, "low"), (2, "high")):
            own = nib.Nifti1Image((values == value).astype(np.uint8), mask.affine, mask.header)
            save(own, out / name / "segmentations" / f"{organ}.nii.gz")
    (out / "labels.csv").write_text("value,name\n1,low\n2,high\n")
    return out


def as_folders(msd: Path, out: Path) -> Path:
    for name, (images, mask) in parts(msd).items():
        for number, image in enumerate(images):
            save(image, out / "images" / f"{name}_{number:04d}.nii.gz")
        save(mask, out / "labels" / f"{name}.nii.gz")
    (out / "labels.json").write_text('{"1": "low", "2": "high"}')
    return out


def as_bids(msd: Path, out: Path) -> Path:
    seg = out / "derivatives" / "manual"
    for name, (images, mask) in parts(msd).items():
        subject = f"sub-{name.removeprefix('case_')}"
        for image, channel in zip(images, ("T1w", "FLAIR"), strict=True):
            save(image, out / subject / "ses-1" / "anat" / f"{subject}_ses-1_{channel}.nii.gz")
        anat = seg / subject / "ses-1" / "anat"
        save(mask, anat / f"{subject}_ses-1_space-orig_desc-manual_dseg.nii.gz")
    (seg / "desc-manual_dseg.tsv").write_text("index\tname\n0\tbackground\n1\tlow\n2\thigh\n")
    (out / "dataset_description.json").write_text('{"Name": "b", "License": "CC0"}')
    return out


LAYOUTS: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "nnunet": (as_nnunet, "nnU-Net"),
    "table": (as_table, "table"),
    "json": (as_json_table, "table"),
    "organs": (as_organs, "organs"),
    "folders": (as_folders, "folders"),
    "bids": (as_bids, "BIDS"),
}


def plan() -> Plan:
    made = small_plan(spacing_mm=(2.0, 1.7, 2.5))
    channels = tuple(
        ChannelPlan.model_validate(made.channels[0].model_dump() | {"name": name})
        for name in CHANNELS
    )
    return made.model_copy(update={"channels": channels})


def preprocessed(dataset: Dataset, folder: Path) -> list[CachedCase]:
    return build_cache(folder, dataset.cases, plan(), workers=1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_preprocessed_cases(msd: Path, tmp_path: Path, name: str) -> None:
    make, layout = LAYOUTS[name]
    dataset = open_dataset(make(msd, tmp_path / name))
    assert dataset.layout == layout
    assert dataset.labels.names == ("low", "high")
    assert dataset.labels.values == (1, 2)
    assert len(dataset.channels) == 2
    if layout == "table":
        assert dataset.channels == CHANNELS
    if name not in ("folders", "json"):
        assert dataset.modalities == ("MR", "MR")
    expected = preprocessed(open_dataset(msd), tmp_path / "cache_of_msd")
    for one, other in zip(expected, preprocessed(dataset, tmp_path / "cache"), strict=True):
        if name != "bids":
            assert one.case_id == other.case_id
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.label, other.label)
        assert np.asarray(one.label).max() == 2


def test_groups_of_tables_and_subjects(msd: Path, tmp_path: Path) -> None:
    table = open_dataset(as_table(msd, tmp_path / "table"))
    assert table.groups == {f"case_00{n}": f"p-case_00{n}" for n in range(3)}
    bids = open_dataset(as_bids(msd, tmp_path / "bids"))
    assert [case.id for case in bids.cases][:1] == ["sub-000_ses-1_space-orig"]
    assert list(bids.groups.values()) == ["sub-000", "sub-001", "sub-002"]
    assert bids.licence == "CC0"
    derivative = open_dataset(tmp_path / "bids" / "derivatives" / "manual")
    assert [case.images for case in derivative.cases] == [case.images for case in bids.cases]


def test_overlapping_organs_are_painted_by_value(tmp_path: Path) -> None:
    affine = oblique_affine()
    low, high = np.zeros((2, 6, 5, 4), dtype=np.uint8)
    low[1:4], high[3:5] = 1, 255
    for name, voxels in {"ct": low * 40, "segmentations/b": low, "segmentations/a": high}.items():
        write_nifti(tmp_path / "d" / "s1" / f"{name}.nii.gz", voxels, affine)
    dataset = open_dataset(tmp_path / "d")
    assert dataset.labels.names == ("a", "b")
    case = dataset.cases[0]
    assert [organ.value for organ in case.organs] == [1, 2]
    assert isinstance(case.organs[0], OrganMask)
    mask, _ = read_case_mask(case)
    np.testing.assert_array_equal(mask[:, 0, 0], [0, 2, 2, 2, 1, 0])
    (tmp_path / "d" / "labels.csv").write_text("value,name\n7,a\n3,b\n")
    mask, scan = read_case_mask(open_dataset(tmp_path / "d").cases[0])
    np.testing.assert_array_equal(mask[:, 0, 0], [0, 3, 3, 7, 7, 0])
    assert scan.geometry == read_case_image(case).geometry


def test_organs_on_two_grids(tmp_path: Path) -> None:
    voxels = np.ones((6, 5, 4), dtype=np.uint8)
    write_nifti(tmp_path / "s1" / "ct.nii.gz", voxels, oblique_affine())
    write_nifti(tmp_path / "s1" / "liver.nii.gz", voxels, oblique_affine())
    write_nifti(tmp_path / "s1" / "spleen.nii.gz", voxels[:-1], oblique_affine())
    with pytest.raises(MedsegError, match=r"spleen.*grid of liver"):
        read_case_mask(open_dataset(tmp_path).cases[0])


def test_regions_and_ignore_of_nnunet(msd: Path, tmp_path: Path) -> None:
    folder = as_nnunet(msd, tmp_path / "n")
    about = json.loads((folder / "dataset.json").read_text())
    about["labels"] = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    about["regions_class_order"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(about))
    dataset = open_dataset(folder)
    assert dataset.regions == (Region("whole", (1, 2), 1), Region("core", (2,), 2))
    assert dataset.ignore == 3
    assert dict(zip(dataset.labels.values, dataset.labels.names, strict=True)) == {
        1: "whole", 2: "core",
    }  # fmt: skip


def test_colour_pictures_are_three_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for name in "ab":
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "labels").mkdir(exist_ok=True)
        colours = rng.integers(0, 255, (9, 7, 3), dtype=np.uint8)
        Image.fromarray(colours).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(np.eye(9, 7, dtype=np.uint8) * 4).save(tmp_path / "labels" / f"{name}.png")
    dataset = open_dataset(tmp_path)
    assert (dataset.channels, dataset.labels.values) == (("red", "green", "blue"), (4,))
    assert read_case_image(dataset.cases[0]).voxels().shape == (3, 7, 9, 1)


@pytest.mark.parametrize(
    ("sides", "folds"),
    [
        (["train", "val", "train"], (Split(("case_000", "case_002"), ("case_001",)),)),
        (["train", "val", "test"], (Split(("case_000",), ("case_001",)),)),
        (["0", "1", "1"], (Split(("case_001", "case_002"), ("case_000",)),
                           Split(("case_000",), ("case_001", "case_002")))),
    ],
)  # fmt: skip
def test_split_column(msd: Path, tmp_path: Path, sides: list[str], folds: Any) -> None:
    folder = as_table(msd, tmp_path / "table")
    lines = (folder / "dataset.csv").read_text().splitlines()
    rows = [f"{line};{side}" for line, side in zip(lines, ["split", *sides], strict=True)]
    (folder / "dataset.csv").write_text("\n".join(rows))
    assert open_dataset(folder).splits == folds


def faults(msd: Path, tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """A broken dataset of each layout, and what its error says."""
    made = {name: make(msd, tmp_path / name) for name, (make, _) in LAYOUTS.items()}
    (made["nnunet"] / "imagesTr" / "case_001_0001.nii.gz").unlink()
    (made["table"] / "scans" / "case_002" / "mask.nii.gz").unlink()
    (made["json"] / "cases.json").write_text('{"cases": []}')
    shutil.rmtree(made["organs"] / "case_001" / "segmentations")
    (made["folders"] / "labels" / "case_000.nii.gz").unlink()
    shutil.rmtree(made["bids"] / "sub-001")
    (tmp_path / "odd").mkdir()
    told = {
        "nnunet": "case_001", "table": "case case_002.*no file", "json": "list of objects",
        "organs": "case_001", "folders": "alone: case_000", "bids": "sub-001",
    }  # fmt: skip
    return {name: (folder, told[name]) for name, folder in made.items()} | {
        "odd": (tmp_path / "odd", "an empty folder"),
        "nowhere": (tmp_path / "nowhere", "no such file or folder"),
    }


def test_each_fault_is_one_line(msd: Path, tmp_path: Path) -> None:
    for folder, told in faults(msd, tmp_path).values():
        with pytest.raises(DatasetError, match=told) as caught:
            open_dataset(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,b\n1,2\n", "columns"),
        ("image,label\n", "a head line and rows"),
        ("image,label\nx.nii.gz,y.nii.gz\n", "no file"),
        ("image,label\nx,y,z\n", "2 fields, got 3"),
        ("case,image,label\n../up,x,y\n", "slashes|no file"),
    ],
)
def test_malformed_tables(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DatasetError, match=told):
        open_dataset(tmp_path / "t.csv")


def test_names_come_from_the_masks_where_nothing_else_says(tmp_path: Path) -> None:
    image, mask = blobs((8, 7, 6))
    write_nifti(tmp_path / "images" / "a.nii.gz", image - 1000, oblique_affine())
    write_nifti(tmp_path / "labels" / "a.nii.gz", mask * 5, oblique_affine())
    dataset = open_dataset(tmp_path)
    assert dataset.labels.names == ("label 5", "label 10")
    assert dataset.modalities == ("CT",)


def test_real_folder_pairs(shared_data: Any) -> None:
    brain = open_dataset(shared_data("brain_oasis"))
    assert (len(brain.cases), len(brain.labels)) == (5, 201)
    retina = open_dataset(shared_data("retina_chase_2d"))
    assert (len(retina.cases), retina.modalities) == (28, ("RGB",) * 3)
