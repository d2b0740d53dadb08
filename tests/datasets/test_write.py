"""A dataset written in another layout is the same dataset; the source stays as it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from medseg.core.errors import InputError, MedsegError
from medseg.datasets.dataset import Dataset
from medseg.datasets.open import open_dataset
from medseg.datasets.reading import read_case_image, read_case_mask
from medseg.workflows.convert import convert
from tests.phantoms import lopsided_volume, oblique_affine, write_msd_dataset, write_nifti


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def same_voxels(one: Dataset, other: Dataset) -> None:
    assert [case.id for case in one.cases] == [case.id for case in other.cases]
    for a, b in zip(one.cases, other.cases, strict=True):
        scan, again = read_case_image(a), read_case_image(b)
        np.testing.assert_array_equal(scan.voxels(), again.voxels())
        assert scan.geometry.difference(again.geometry) is None
        mask, _ = read_case_mask(a)
        np.testing.assert_array_equal(mask, read_case_mask(b)[0])


@pytest.mark.parametrize("channels", [("CT",), ("T1", "T2")])
@pytest.mark.parametrize(
    ("to", "layout"), [("msd", "MSD"), ("nnunet", "nnU-Net"), ("table", "table")]
)
def test_there_and_back(
    tmp_path: Path, to: str, layout: str, channels: tuple[str, ...]
) -> None:  # fmt: skip
    source = write_msd_dataset(tmp_path / "a", cases=3, shape=(9, 7, 5), channels=channels)
    before = contents(source)
    told = convert(source, tmp_path / "b", to=to)
    assert told["cases"] == 3
    original, there = open_dataset(source), open_dataset(tmp_path / "b")
    assert there.layout == layout
    assert there.splits == original.splits
    assert (there.labels.names, there.labels.values) == (("low", "high"), (1, 2))
    if not (to == "table" and len(channels) > 1):
        assert there.modalities == original.modalities
    same_voxels(original, there)
    convert(tmp_path / "b", tmp_path / "c", to="msd", link=True)
    same_voxels(original, open_dataset(tmp_path / "c"))
    assert contents(source) == before
    assert not list(tmp_path.glob(".medseg-*"))


def test_nnunet_gets_labels_without_gaps(tmp_path: Path) -> None:
    source = write_msd_dataset(tmp_path / "a", cases=2, shape=(9, 7, 5))
    for path in (source / "labelsTr").glob("*.nii.gz"):
        mask, scan = read_case_mask(open_dataset(source).cases[int(path.name[7])])
        write_nifti(path, np.array([0, 4, 300], np.uint16)[mask], scan.geometry.affine_ras)
    raw = json.loads((source / "dataset.json").read_text())
    raw["labels"] = {"0": "background", "300": "high", "4": "low"}
    (source / "dataset.json").write_text(json.dumps(raw))
    told = convert(source, tmp_path / "b", to="nnunet")
    assert told["renumbered"] == {"4": 1, "300": 2}
    there = open_dataset(tmp_path / "b")
    assert (there.labels.names, there.labels.values) == (("low", "high"), (1, 2))
    for a, b in zip(open_dataset(source).cases, there.cases, strict=True):
        old, new = read_case_mask(a)[0], read_case_mask(b)[0]
        np.testing.assert_array_equal(np.array([0, 4, 300])[new], old)


def test_organs_become_one_mask(tmp_path: Path) -> None:
    voxels, affine = lopsided_volume(oblique=True)
    write_nifti(tmp_path / "a" / "s1" / "ct.nii.gz", voxels, affine)
    for name, part in (("liver", voxels > 300), ("spleen", voxels > 500)):
        path = tmp_path / "a" / "s1" / "segmentations" / f"{name}.nii.gz"
        write_nifti(path, part.astype(np.uint8), affine)
    convert(tmp_path / "a", tmp_path / "b", to="msd")
    dataset = open_dataset(tmp_path / "b")
    assert dataset.labels.names == ("liver", "spleen")
    mask, _ = read_case_mask(dataset.cases[0])
    np.testing.assert_array_equal(mask, np.where(voxels > 500, 2, voxels > 300))


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    source = write_msd_dataset(tmp_path / "a", cases=2, shape=(9, 7, 5))
    before = contents(source)
    for out in (source, source / "inside"):
        with pytest.raises(InputError, match="--out"):
            convert(source, out, to="msd")
    with pytest.raises(InputError, match="msd, nnunet, table"):
        convert(source, tmp_path / "b", to="zip")
    assert contents(source) == before


def test_a_broken_case_leaves_nothing_behind(tmp_path: Path) -> None:
    source = write_msd_dataset(tmp_path / "a", cases=2, shape=(9, 7, 5), channels=("T1", "T2"))
    path = source / "imagesTr" / "case_001.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MedsegError, match="case_001"):
        convert(source, tmp_path / "b", to="nnunet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_sheared_grid_stays_where_it_is(tmp_path: Path) -> None:
    voxels, _ = lopsided_volume()
    affine = oblique_affine()
    affine[:3, 1] += 0.3 * affine[:3, 0]
    for number in range(2):
        for name in (f"images/s_{number:04d}.nii.gz", "labels/s.nii.gz"):
            write_nifti(tmp_path / "a" / name, voxels % 2 + number, affine)
    convert(tmp_path / "a", tmp_path / "b", to="msd")
    same_voxels(open_dataset(tmp_path / "a"), open_dataset(tmp_path / "b"))


def with_meaning(folder: Path) -> Path:
    """Regions over the values 2, 5 and 9, 300 to be ignored, one case without the last of them."""
    source = write_msd_dataset(folder, cases=3, shape=(9, 7, 5))
    values = np.array([0, 2, 5, 9, 300], np.uint16)
    for number, case in enumerate(open_dataset(source).cases):
        assert case.label is not None
        mask, scan = read_case_mask(case)
        mask = mask.astype(np.uint8)
        mask[0, number], mask[1, :, 2] = 3, 4
        write_nifti(case.label, values[mask], scan.geometry.affine_ras)
    raw = json.loads((source / "dataset.json").read_text())
    raw["labels"] = {"background": 0, "whole": [2, 5, 9], "core": [5, 9], "ignore": 300}
    raw["regions_class_order"] = [2, 9]
    raw["training"][1]["annotated"] = ["2", "5"]
    (source / "dataset.json").write_text(json.dumps(raw))
    return source


@pytest.mark.parametrize("to", ["msd", "nnunet"])
def test_what_masks_mean_is_kept(tmp_path: Path, to: str) -> None:
    source = with_meaning(tmp_path / "a")
    original = open_dataset(source)
    told = convert(source, tmp_path / "b", to=to)
    there = open_dataset(tmp_path / "b")
    new = {int(old): value for old, value in told["renumbered"].items()}
    assert new == ({2: 1, 5: 2, 9: 3, 300: 4} if to == "nnunet" else {})
    assert there.ignore == new.get(300, 300)
    for region, again in zip(original.regions, there.regions, strict=True):
        assert (again.name, again.value) == (region.name, new.get(region.value, region.value))
        assert again.values == tuple(new.get(value, value) for value in region.values)
    assert [case.annotated for case in there.cases] == [
        None, tuple(new.get(value, value) for value in (2, 5)), None
    ]  # fmt: skip
    for a, b in zip(original.cases, there.cases, strict=True):
        old, now = read_case_mask(a)[0], read_case_mask(b)[0]
        assert {int(value) for value in np.unique(old)} >= {2, 5, 9, 300}
        table = np.arange(301)
        table[list(new)] = list(new.values())
        np.testing.assert_array_equal(table[old], now)
    with pytest.raises(InputError, match=r"regions, which overlap.*--to msd or nnunet"):
        convert(source, tmp_path / "c", to="table")


@pytest.mark.parametrize("to", ["msd", "nnunet", "table"])
def test_ignore_and_annotated_of_plain_labels_are_kept(tmp_path: Path, to: str) -> None:
    source = with_meaning(tmp_path / "a")
    raw = json.loads((source / "dataset.json").read_text())
    raw["labels"] = {"background": 0, "low": 2, "high": 5, "top": 9, "ignore": 300}
    del raw["regions_class_order"]
    (source / "dataset.json").write_text(json.dumps(raw))
    convert(source, tmp_path / "b", to=to)
    there = open_dataset(tmp_path / "b")
    assert there.labels.names == ("low", "high", "top")
    values = (1, 2, 3) if to == "nnunet" else (2, 5, 9)
    assert (there.labels.values, there.ignore) == (values, 4 if to == "nnunet" else 300)
    assert [case.annotated for case in there.cases] == [None, values[:2], None]


def test_a_channel_that_is_not_there_is_left_out_of_a_table(tmp_path: Path) -> None:
    source = write_msd_dataset(tmp_path / "a", cases=2, shape=(9, 7, 5), channels=("T1", "T2"))
    convert(source, tmp_path / "apart", to="nnunet")
    rows = ["case,image_T1,image_T2,label"]
    for n, second in ((0, "{}_0001.nii.gz"), (1, "")):
        name = f"apart/imagesTr/case_{n:03d}"
        rows.append(
            f"case_{n:03d},{name}_0000.nii.gz,{second.format(name)},apart/labelsTr/case_{n:03d}.nii.gz"
        )
    table = tmp_path / "cases.csv"
    table.write_text("\n".join(rows) + "\n")
    convert(table, tmp_path / "b", to="table")
    original, there = open_dataset(table), open_dataset(tmp_path / "b")
    assert [case.missing for case in there.cases] == [(), (1,)]
    assert there.channels == original.channels
    same_voxels(original, there)
    with pytest.raises(InputError, match=r"case_001.*a channel that is not there.*--to table"):
        convert(table, tmp_path / "c", to="nnunet")
