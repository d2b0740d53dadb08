"""Measure, preview, mesh, contours: folders in, files out; and what is written beside a mask."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medseg.core.errors import (
    GeometryError,
    InputError,
    LabelError,
    MissingPackageError,
    SettingsError,
)
from medseg.core.labels import LabelSet
from medseg.core.results import Prediction
from medseg.core.slices import SlicePlaces
from medseg.io.formats import read_mask, write_mask
from medseg.workflows.mask_cases import find_mask_cases
from medseg.workflows.measure import measure
from medseg.workflows.output_options import Outputs, file_words
from medseg.workflows.outputs import write_outputs
from medseg.workflows.pairing import index_by_case
from medseg.workflows.preview import preview
from medseg.workflows.surfaces import make_contours, make_meshes
from tests.phantoms import blobs, lopsided_geometry, oblique_affine, write_msd_dataset, write_nifti

SHAPE = (24, 20, 16)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_msd_dataset(tmp_path / "data", cases=3)


def made(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_measure_writes_a_table(data: Path, tmp_path: Path) -> None:
    result = measure(data / "imagesTr", data / "labelsTr", tmp_path / "table.csv", workers=2)
    assert result["failed"] == {}
    with (tmp_path / "table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["label"]) for row in rows[:2]] == [
        ("case_000", "low"), ("case_000", "high"),
    ]  # fmt: skip
    mask = np.asarray(nib.load(data / "labelsTr" / "case_000.nii.gz").dataobj)
    assert float(rows[1]["volume_ml"]) == pytest.approx((mask == 2).sum() * 9.0 / 1000)
    assert float(rows[1]["mean"]) == pytest.approx(600.0, abs=5.0)
    measure(data / "imagesTr", data / "labelsTr", tmp_path / "table.json", labels="high")
    again = json.loads((tmp_path / "table.json").read_text())
    assert [row["label"] for row in again["rows"]] == ["high"] * 3


def test_measure_tells_what_is_wrong(data: Path, tmp_path: Path) -> None:
    images, masks = data / "imagesTr", data / "labelsTr"
    with pytest.raises(SettingsError, match=r"\.csv"):
        measure(images, masks, tmp_path / "table.xlsx")
    with pytest.raises(LabelError, match="spleen"):
        measure(images / "case_000.nii.gz", masks / "case_000.nii.gz", labels="spleen")
    with pytest.raises(GeometryError, match="grid"):
        measure(images / "case_001.nii.gz", masks / "case_000.nii.gz")
    with pytest.raises(InputError, match="same case ids"):
        measure(tmp_path_with(tmp_path, "other.nii.gz"), masks)
    write_nifti(masks / "case_001.nii.gz", np.full((5, 4, 3), 0.5, dtype=np.float32), np.eye(4))
    result = measure(images, masks)
    assert list(result["failed"]) == ["case_001"]
    assert len(result["rows"]) == 4


def tmp_path_with(folder: Path, name: str) -> Path:
    write_nifti(folder / "others" / name, blobs(SHAPE)[0], np.eye(4))
    return folder / "others"


def test_previews_and_montage(data: Path, tmp_path: Path) -> None:
    result = preview(data / "imagesTr", data / "labelsTr", tmp_path / "out", workers=2)
    assert made(tmp_path / "out") == [*(f"case_00{n}.png" for n in range(3)), "montage.png"]
    assert result["montage"] == [str(tmp_path / "out" / "montage.png")]
    with Image.open(tmp_path / "out" / "montage.png") as sheet:
        assert sheet.width > 300
    one = data / "imagesTr" / "case_000.nii.gz", data / "labelsTr" / "case_000.nii.gz"
    preview(*one, tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "out" / "case_000.png").read_bytes()
    with pytest.raises(SettingsError, match="a folder"):
        preview(data / "imagesTr", data / "labelsTr", tmp_path / "all.png")
    with pytest.raises(InputError, match="place of its own"):
        preview(data / "imagesTr", data / "labelsTr", data / "imagesTr")


def test_meshes_and_outlines(data: Path, tmp_path: Path) -> None:
    make_meshes(data / "labelsTr", tmp_path / "m", kind="ply", workers=2)
    assert made(tmp_path / "m")[:2] == ["case_000/high.ply", "case_000/low.ply"]
    make_meshes(data / "labelsTr" / "case_000.nii.gz", tmp_path / "s", kind="stl", scene=True)
    make_meshes(data / "labelsTr" / "case_000.nii.gz", tmp_path / "s", kind="glb")
    assert made(tmp_path / "s") == ["case_000.glb", "case_000.stl"]
    make_contours(data / "labelsTr", tmp_path / "c", plane="sagittal")
    found = json.loads((tmp_path / "c" / "case_001.json").read_text())
    assert found["axis"] == 0
    for call in (make_meshes, make_contours):
        with pytest.raises(SettingsError):
            call(data / "labelsTr", tmp_path / "x", kind="fbx")
        with pytest.raises(SettingsError):
            call(data / "labelsTr", tmp_path / "x", kind="")
        with pytest.raises(InputError, match="place of its own"):
            call(data / "labelsTr", data / "labelsTr")
    with pytest.raises(SettingsError, match="plane"):
        make_contours(data / "labelsTr", tmp_path / "x", plane="up")
    with pytest.raises(InputError, match="--format json"):
        make_contours(data / "labelsTr", tmp_path / "x", kind="svg")
    assert not (tmp_path / "x").exists()


def test_pictures_give_one_coco_file(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in ("a", "b"):
        pixels = np.zeros((20, 30), dtype=np.uint8)
        pixels[3:9, 5:25] = 1
        Image.fromarray(pixels).save(masks / f"{name}.png")
    make_contours(masks, tmp_path / "out", kind="coco")
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.png"]
    assert content["annotations"][0]["bbox"] == [5, 3, 20, 6]


def prediction(names: dict[int, str]) -> Prediction:
    return Prediction(blobs(SHAPE)[1], lopsided_geometry(SHAPE), LabelSet.from_names(names))


def test_everything_beside_a_mask(tmp_path: Path) -> None:
    made_of = prediction({1: "a/b", 2: "A b", 3: "..", 4: "a_b_2"})
    path = tmp_path / "deep" / "case 1.nii.gz"
    wanted = Outputs(per_label=True, contours="json", meshes="vtp", measure=True, preview=True)
    voxels = blobs(SHAPE)[0][None]
    files = write_outputs(made_of, path, wanted, voxels=voxels, workers=2)
    write_mask(path, made_of)
    assert set(files) <= set(wanted.paths(path, made_of.label_set))
    assert sorted(files) == sorted(p for p in tmp_path.rglob("*") if p.is_file() and p != path)
    assert made(tmp_path / "deep") == [
        "case 1.nii.gz", "case 1_contours.json",
        "case 1_labels/A_b_2.nii.gz", "case 1_labels/a_b.nii.gz", "case 1_labels/a_b_2_4.nii.gz",
        "case 1_labels/label.nii.gz", "case 1_measurements.csv",
        "case 1_meshes/A_b_2.vtp", "case 1_meshes/a_b.vtp", "case 1_preview.png",
    ]  # fmt: skip
    own, scan = read_mask(tmp_path / "deep" / "case 1_labels" / "A_b_2.nii.gz")
    np.testing.assert_array_equal(own, made_of.labels == 2)
    assert scan.geometry.difference(made_of.geometry) is None
    assert own.dtype == np.uint8
    # None of them is taken for the mask of a case.
    assert list(index_by_case(tmp_path / "deep", "masks")) == ["case 1"]


def test_names_of_files() -> None:
    words = file_words(LabelSet.from_names({1: "é" * 200, 2: "é" * 199, 3: ".hidden", 4: "../x"}))
    assert len(set(words.values())) == 4
    assert all(len(word.encode()) < 200 and "/" not in word for word in words.values())
    assert not any(word.startswith(".") for word in words.values())


def test_outputs_know_their_formats() -> None:
    assert not Outputs().any
    assert Outputs().of_result() == {}
    assert Outputs(meshes="glb", measure=True).of_result() == {"meshes": "glb", "measure": True}
    assert Outputs(preview=True).need_scan
    assert not Outputs(meshes="glb").need_scan
    for wrong in ({"meshes": "fbx"}, {"contours": "dxf"}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            Outputs(**wrong)


def test_two_files_belong_together_whatever_they_are_called(tmp_path: Path) -> None:
    scan = write_nifti(tmp_path / "s" / "x.nii.gz", blobs(SHAPE)[0], oblique_affine())
    mask = write_nifti(tmp_path / "m" / "y.nii.gz", blobs(SHAPE)[1], oblique_affine())
    (case,) = find_mask_cases(mask, scan)
    assert (case.case, case.scan) == ("y", scan)
    result = measure(scan, mask)
    assert [row["label"] for row in result["rows"]] == ["1", "2"]


class StandIn:
    """What pyradiomics has that is used here: ``execute(image, mask, label=...)``."""

    def execute(self, image: Any, mask: Any, *, label: int) -> dict[str, Any]:
        inside = sitk.GetArrayFromImage(mask) == label
        if inside.sum() < 2:
            raise ValueError("mask has too few dimensions")
        assert image.GetOrigin() == mask.GetOrigin()
        mean = sitk.GetArrayFromImage(image)[inside].mean()
        return {"diagnostics_Versions": "3", "original_firstorder_Mean": np.array(mean)}


def test_radiomics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voxels, mask = blobs(SHAPE)
    mask[0, 0, 0] = 3
    scan = write_nifti(tmp_path / "s" / "x.nii.gz", voxels, oblique_affine())
    masks = write_nifti(tmp_path / "m" / "x.nii.gz", mask, oblique_affine())
    monkeypatch.setitem(sys.modules, "radiomics", None)
    with pytest.raises(MissingPackageError, match="radiomics"):
        measure(scan, masks, radiomics=True)
    package, inner = ModuleType("radiomics"), ModuleType("radiomics.featureextractor")
    inner.RadiomicsFeatureExtractor = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "radiomics", package)
    monkeypatch.setitem(sys.modules, "radiomics.featureextractor", inner)
    rows = measure(scan, masks, radiomics=True)["rows"]
    for row in rows[:2]:
        assert row["original_firstorder_Mean"] == pytest.approx(row["mean"])
    assert "original_firstorder_Mean" not in rows[2]
    assert not any(name.startswith("diagnostics") for name in rows[0])


def test_uneven_slices_count_with_their_thickness(tmp_path: Path) -> None:
    made_of = prediction({1: "low", 2: "high"})
    along_mm = (*np.arange(8) * 3.5, *(28.0 + np.arange(8) * 7.0))
    places = SlicePlaces(tuple(z / 3.5 for z in along_mm), along_mm, ((0.0, 0.0, 0.0),) * 16)
    uneven = replace(made_of, slices=places)
    write_outputs(uneven, tmp_path / "x.nii.gz", Outputs(measure=True))
    with (tmp_path / "x_measurements.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    expected = uneven.volumes_ml()
    assert expected["low"] > 1.2 * made_of.volumes_ml()["low"]
    assert float(rows[0]["volume_ml"]) == pytest.approx(expected["low"], rel=1e-6)
