"""Regions, ignore, and labels that only some cases have, in every layout that can say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.core.errors import DatasetError, MedsegError
from medseg.datasets.inspect import verify_case
from medseg.datasets.open import open_dataset
from medseg.datasets.reading import read_case_image
from medseg.datasets.scheme import training_scheme
from tests.phantoms import oblique_affine, write_msd_dataset, write_nifti

TUMOUR = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}


def described(folder: Path, **changes: Any) -> Path:
    """A dataset of MSD layout whose description is changed."""
    write_msd_dataset(folder, cases=3, shape=(9, 8, 6))
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def entries(*annotated: object) -> list[dict[str, object]]:
    names = [f"case_{n:03d}.nii.gz" for n in range(len(annotated))]
    return [
        {"image": f"imagesTr/{n}", "label": f"labelsTr/{n}"}
        | ({} if a is None else {"annotated": a})
        for n, a in zip(names, annotated, strict=True)
    ]


def test_regions_and_ignore(tmp_path: Path) -> None:
    dataset = open_dataset(described(tmp_path, labels=TUMOUR, regions_class_order=[1, 2]))
    scheme = training_scheme(dataset)
    assert (scheme.regions, scheme.ignore) == (True, 3)
    assert scheme.labels.names == ("whole", "core")
    assert [label.sources for label in scheme.labels.labels] == [(1, 2), (2,)]
    assert scheme.labels.values == (1, 2)
    only = training_scheme(dataset, "core")
    assert [(label.value, label.name) for label in only.labels.labels] == [(2, "core")]


@pytest.mark.parametrize("labels", [{"organ": 1, "ignore": 2}, {"1": "organ", "2": "Ignore"}])
def test_ignore_is_no_label(tmp_path: Path, labels: dict[str, Any]) -> None:
    dataset = open_dataset(described(tmp_path, labels=labels))
    assert (dataset.labels.names, dataset.ignore) == (("organ",), 2)
    assert verify_case(dataset.cases[0], dataset).label_voxels.keys() == {1}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": TUMOUR}, "'regions_class_order'.*none for whole, core"),
        ({"labels": TUMOUR, "regions_class_order": [1]}, "none for whole, core"),
        ({"labels": TUMOUR, "regions_class_order": [1, 1]}, r"later ones.*\[1, 1\]"),
        ({"labels": {"all": [0, 1], "b": [2]}, "regions_class_order": [1, 2]}, "background in all"),
        ({"labels": TUMOUR | {"ignore": 2}, "regions_class_order": [1, 2]}, "without 'ignore'"),
        ({"labels": {"a": 1, "ignore": 2, "b": 3}}, "above all others.*got 2"),
        ({"training": entries(["low"], ["low"], ["low"])}, "annotated in at least one.*high"),
    ],
)
def test_a_wrong_scheme_is_one_clear_error(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    dataset = open_dataset(described(tmp_path, **changes))
    with pytest.raises(DatasetError, match=told) as caught:
        training_scheme(dataset)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [["kidney"], "low;kidney", [], 3])
def test_an_annotated_label_must_be_one_of_the_dataset(tmp_path: Path, given: object) -> None:
    with pytest.raises(DatasetError, match=r"case_001, 'annotated'.*low, high"):
        open_dataset(described(tmp_path, training=entries(None, given)))


def test_annotated_labels_of_each_case(tmp_path: Path) -> None:
    folder = described(tmp_path, training=entries(None, ["high"], "low; 2"))
    dataset = open_dataset(folder)
    assert [case.annotated for case in dataset.cases] == [None, (2,), (1, 2)]
    scheme = training_scheme(dataset, "both=low+high,high")
    assert [scheme.known(case.annotated) for case in dataset.cases] == [None, (False, True), None]
    # Where it is said what was looked for, an empty mask is an answer.
    empty = np.zeros((10, 8, 7), dtype=np.uint8)
    for name in ("imagesTr", "labelsTr"):
        write_nifti(folder / name / "case_001.nii.gz", empty, oblique_affine())
    assert verify_case(dataset.cases[1], dataset).label_voxels == {1: 0, 2: 0}


def test_nnunet_layout_and_tables(tmp_path: Path) -> None:
    voxels, affine = np.ones((6, 5, 4), dtype=np.uint8), oblique_affine()
    for name in ("a", "b"):
        write_nifti(tmp_path / "imagesTr" / f"{name}_0000.nii.gz", voxels, affine)
        write_nifti(tmp_path / "labelsTr" / f"{name}.nii.gz", voxels, affine)
    about: dict[str, Any] = {
        "channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1, "y": 2},
        "file_ending": ".nii.gz", "numTraining": 2, "annotated": {"b": ["y"]},
    }  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    assert [case.annotated for case in open_dataset(tmp_path).cases] == [None, (2,)]
    (tmp_path / "dataset.json").write_text(json.dumps(about | {"annotated": {"c": ["y"]}}))
    with pytest.raises(DatasetError, match=r"'annotated'.*got c"):
        open_dataset(tmp_path)
    table = tmp_path / "cases.csv"
    table.write_text(
        "image,label,annotated\nimagesTr/a_0000.nii.gz,labelsTr/a.nii.gz,\n"
        "imagesTr/b_0000.nii.gz,labelsTr/b.nii.gz,y\n"
    )
    (tmp_path / "cases.labels.csv").write_text("value,name\n1,x\n2,y\n9,ignore\n")
    dataset = open_dataset(table)
    assert ([case.annotated for case in dataset.cases], dataset.ignore) == ([None, (2,)], 9)
    rows = [
        {"image": "imagesTr/a_0000.nii.gz", "label": "labelsTr/a.nii.gz", "annotated": ["whole"]}
    ]
    json_table = tmp_path / "other.json"
    json_table.write_text(
        json.dumps({"labels": TUMOUR, "regions_class_order": [1, 2], "cases": rows})
    )
    assert open_dataset(json_table).cases[0].annotated == (1, 2)


def test_a_channel_that_a_case_has_not_is_zeros(tmp_path: Path) -> None:
    voxels, affine = np.full((6, 5, 4), 7, dtype=np.int16), oblique_affine()
    write_nifti(tmp_path / "t1.nii.gz", voxels, affine)
    write_nifti(tmp_path / "flair.nii.gz", 2 * voxels, affine)
    write_nifti(tmp_path / "mask.nii.gz", np.ones((6, 5, 4), dtype=np.uint8), affine)
    table = tmp_path / "cases.csv"
    table.write_text(
        "case,image_T1,image_FLAIR,label\na,t1.nii.gz,flair.nii.gz,mask.nii.gz\n"
        "b,,flair.nii.gz,mask.nii.gz\n"
    )
    first, second = open_dataset(table).cases
    assert (first.missing, second.missing) == ((), (0,))
    scan = read_case_image(second)
    assert scan.missing == (0,)
    assert [float(channel.max()) for channel in scan.voxels()] == [0, 14]
    assert verify_case(second, open_dataset(table)).geometry == scan.geometry
    table.write_text("case,image_T1,image_FLAIR,label\na,,,mask.nii.gz\n")
    with pytest.raises(MedsegError, match="no file"):
        open_dataset(table)
