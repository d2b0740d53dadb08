from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medseg.core.errors import DatasetError
from medseg.datasets.dataset import Split
from medseg.datasets.msd import read_msd
from tests.phantoms import write_msd_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_msd_dataset(tmp_path / "blobs", cases=3, shape=(6, 5, 4))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "dataset.json"
    raw = json.loads(path.read_text())
    raw.update(changes)
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


def test_reads_what_the_folder_says(folder: Path) -> None:
    edit(folder, licence="CC0")
    dataset = read_msd(folder)
    assert dataset.name == "blobs"
    assert dataset.channels == ("CT",)
    assert dataset.modalities == ("CT",)
    assert dict(zip(dataset.labels.values, dataset.labels.names, strict=True)) == {
        1: "low",
        2: "high",
    }
    assert [case.id for case in dataset.cases] == ["case_000", "case_001", "case_002"]
    assert dataset.cases[1].images[0].samefile(folder / "imagesTr" / "case_001.nii.gz")
    assert dataset.cases[1].label is not None
    assert dataset.cases[1].label.samefile(folder / "labelsTr" / "case_001.nii.gz")
    assert dataset.splits == (Split(("case_000", "case_001"), ("case_002",)),)
    assert dataset.licence == "CC0"


def test_reading_opens_no_image(folder: Path) -> None:
    for path in folder.glob("*Tr/*.nii.gz"):
        path.write_bytes(b"no image at all")
    assert len(read_msd(folder).cases) == 3


def test_nnunet_keys_mean_the_same(folder: Path) -> None:
    plain = read_msd(folder)
    edit(
        folder,
        modality=None,
        channel_names={"0": "CT"},
        labels={"background": 0, "low": 1, "high": 2},
    )
    assert read_msd(folder) == plain


def test_entries_may_be_image_paths_alone(folder: Path) -> None:
    plain = read_msd(folder)
    edit(folder, training=[f"imagesTr/case_00{n}.nii.gz" for n in range(3)])
    assert read_msd(folder).cases == plain.cases


@pytest.mark.parametrize(
    ("given", "channels", "modalities"),
    [
        ({"0": "MRI"}, ("MRI",), ("MR",)),
        ({"1": "T1w", "0": "FLAIR"}, ("FLAIR", "T1w"), ("MR", "MR")),
        ({"0": "MR", "1": "MR"}, ("MR 1", "MR 2"), ("MR", "MR")),
        (["ct", "PET"], ("ct", "PET"), ("CT", "PET")),
        ("CT", ("CT",), ("CT",)),
    ],
)
def test_channels(
    folder: Path, given: Any, channels: tuple[str, ...], modalities: tuple[str, ...]
) -> None:
    edit(folder, modality=given)
    dataset = read_msd(folder)
    assert dataset.channels == channels
    assert dataset.modalities == modalities


def test_groups_are_kept(folder: Path) -> None:
    training = json.loads((folder / "dataset.json").read_text())["training"]
    training[0]["group"] = training[2]["group"] = "p1"
    edit(folder, training=training)
    assert [case.group for case in read_msd(folder).cases] == ["p1", "", "p1"]


def case(image: str = "imagesTr/case_000.nii.gz", **more: str) -> dict[str, str]:
    return {"image": image, "label": "labelsTr/case_000.nii.gz", **more}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training": []}, "'training'"),
        ({"training": None}, "'training'"),
        ({"training": [3]}, "an image and a label"),
        ({"training": [{"image": "imagesTr/case_000.nii.gz"}]}, "label"),
        ({"training": [case("imagesTr/nobody.nii.gz")]}, "imagesTr/nobody.nii.gz"),
        ({"training": [case(), case()]}, "case_000"),
        ({"training": [case("../other/case_000.nii.gz")]}, "inside the dataset's folder"),
        ({"training": [case("imagesTr/../../x.nii.gz")]}, "inside the dataset's folder"),
        ({"training": [case("/etc/hostname")]}, "inside the dataset's folder"),
        ({"labels": None}, "'labels'"),
        ({"labels": {"0": "background"}}, "at least one label|values 1 to 65535"),
        ({"labels": {"1": "a", "2": "a"}}, "a name of its own"),
        ({"labels": {"-1": "a"}}, "one whole number"),
        ({"labels": {"70000": "a"}}, "65535"),
        ({"labels": {"whole": [1, "x"]}}, "whole numbers per region"),
        ({"labels": {"ignore": 2}}, "'labels'"),
        ({"labels": {"a": 1, "b": 1}}, "one name per value"),
        ({"modality": {"1": "CT"}}, "channels from 0"),
        ({"modality": None}, "'modality'"),
    ],
)
def test_each_fault_is_one_line(folder: Path, changes: dict[str, Any], told: str) -> None:
    edit(folder, **changes)
    with pytest.raises(DatasetError, match=told) as caught:
        read_msd(folder)
    assert str(folder) in str(caught.value)
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_folder_no_dataset_json_no_json(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        read_msd(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"no dataset\.json"):
        read_msd(tmp_path / "empty")
    (folder / "dataset.json").write_text('{"labels": ')
    with pytest.raises(DatasetError, match="expected JSON"):
        read_msd(folder)
    (folder / "dataset.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="expected JSON"):
        read_msd(folder)
    (folder / "dataset.json").write_text("[1]")
    with pytest.raises(DatasetError, match="a JSON object"):
        read_msd(folder)


@pytest.mark.parametrize(
    "splits", [{}, [], [3], [{"train": ["case_000"]}], [{"train": 1, "val": 2}]]
)
def test_malformed_splits(folder: Path, splits: object) -> None:
    (folder / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(DatasetError, match=r"splits\.json"):
        read_msd(folder)


def test_select(folder: Path) -> None:
    dataset = read_msd(folder)
    assert [c.id for c in dataset.select(("case_002", "case_000"))] == ["case_002", "case_000"]
    with pytest.raises(DatasetError, match="nobody"):
        dataset.select(("nobody",))


def test_real_dataset(shared_data: Any) -> None:
    dataset = read_msd(shared_data("hippocampus"))
    assert (len(dataset.cases), dataset.modalities) == (208, ("MR",))
    assert dataset.labels.names == ("Anterior", "Posterior")
    assert dataset.splits is not None
    assert len(dataset.splits) == 5
