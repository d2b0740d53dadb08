"""check, convert and evaluate on DICOM segmentations and structure sets."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.results import Prediction
from medseg.datasets.open import open_dataset
from medseg.datasets.reading import read_case_image, read_case_mask
from medseg.io.formats import read_mask, write_mask
from medseg.quality.observe import observe_case
from medseg.workflows.convert import convert
from medseg.workflows.evaluate import evaluate
from tests.datasets.test_dicom_masks import box, table
from tests.dicom_objects import Roi, SegFile, closed, write_rtstruct
from tests.dicom_phantoms import Series, random_voxels

SHAPE = (13, 9, 6)


def test_check_looks_into_them(tmp_path: Path) -> None:
    dataset = open_dataset(table(tmp_path / "set"))
    for case in dataset.cases:
        seen = observe_case(case, dataset)
        assert [finding.kind for finding in seen.findings] == []
        assert set(seen.labels) == {1, 2}
    (tmp_path / "set" / "masks" / "b.dcm").unlink()
    broken = observe_case(dataset.cases[1], dataset)
    assert [finding.kind for finding in broken.findings] == ["missing-file"]


@pytest.mark.parametrize("layout", ["msd", "nnunet", "table"])
def test_convert_writes_them_as_nifti(tmp_path: Path, layout: str) -> None:
    source = open_dataset(table(tmp_path / "set"))
    done = convert(tmp_path / "set" / "cases.csv", tmp_path / "out", to=layout)
    assert (done["copied"], done["rewritten"]) == (0, 4)
    made = open_dataset(tmp_path / "out")
    assert made.labels.names == ("Liver", "Spleen")
    for old, new in zip(source.cases, made.cases, strict=True):
        assert new.id == old.id
        np.testing.assert_array_equal(read_case_mask(new)[0], read_case_mask(old)[0])
        here, there = read_case_image(new), read_case_image(old)
        np.testing.assert_array_equal(here.voxels(), there.voxels())
        assert here.geometry.difference(there.geometry) is None


def studies(folder: Path) -> Series:
    """Two studies with their masks: CT and SEG in folders of their own, RTSTRUCT beside CT."""
    first = Series(random_voxels(SHAPE))
    first.write(folder / "site" / "p1" / "ct")
    seg = SegFile(first, {3: box(at=1), 9: box(at=7)}, {3: "Liver", 9: "Spleen"})
    seg.write(folder / "site" / "p1" / "seg" / "s.dcm")
    second = Series(random_voxels(SHAPE), uid=f"{first.uid}.5", tags={"StudyInstanceUID": "1.2.9"})
    second.write(folder / "p2")
    corners = [(0.5, 1.5), (3.5, 1.5), (3.5, 5.5), (0.5, 5.5)]
    path = folder / "p2" / "rt.dcm"
    write_rtstruct(second, {7: Roi("liver", [closed(corners, k) for k in (1, 2)])}, path)
    return first


def test_evaluate_pairs_studies_by_folder_and_structures_by_name(tmp_path: Path) -> None:
    series = studies(tmp_path / "truth")
    geometry = Geometry(SHAPE, series.affine_ras())
    labels = LabelSet.from_names({1: "Spleen", 2: "Liver"})
    masks = {
        "site/p1": np.where(box(at=7), 1, 0) + np.where(box(at=1), 2, 0),
        "p2": np.where(box(at=2), 2, 0),
    }
    for case, mask in masks.items():
        target = tmp_path / "masks" / f"{case}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_mask(target, Prediction(mask.astype(np.uint8), geometry, labels))
    result = evaluate(tmp_path / "masks", tmp_path / "truth")
    assert result["missing"] == []
    assert result["failed"] == {}
    assert result["cases"]["site/p1"]["1"]["dice"] == 1.0
    assert result["cases"]["site/p1"]["2"]["dice"] == 1.0
    # Two of three rows overlap: 2 * 16 / (24 + 24).
    assert result["cases"]["p2"]["2"]["dice"] == pytest.approx(2 / 3)


def test_a_flat_folder_is_paired_by_file_name(tmp_path: Path) -> None:
    series = Series(random_voxels(SHAPE))
    for name, at in (("a", 1), ("b", 6)):
        SegFile(series, {1: box(at=at)}).write(tmp_path / "truth" / f"{name}.dcm")
        values, scan = read_mask(tmp_path / "truth" / f"{name}.dcm")
        target = tmp_path / "masks" / f"{name}.nii.gz"
        target.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(values, scan.geometry.affine_ras), target)
    result = evaluate(tmp_path / "masks", tmp_path / "truth")
    assert {case: row["1"]["dice"] for case, row in result["cases"].items()} == {"a": 1, "b": 1}
