"""Tables whose masks are DICOM segmentations and structure sets, beside DICOM studies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.core.errors import DatasetError
from medseg.datasets.inspect import verify_case
from medseg.datasets.open import open_dataset
from medseg.datasets.reading import read_case_image, read_case_mask
from tests.dicom_objects import Roi, SegFile, closed, write_rtstruct
from tests.dicom_phantoms import Series, random_voxels

SHAPE = (13, 9, 6)


def box(*, at: int) -> NDArray[np.bool_]:
    made = np.zeros(SHAPE, dtype=bool)
    made[at : at + 3, 2:6, 1:3] = True
    return made


def table(folder: Path) -> Path:
    """Two cases; the same organs under other numbers, once as SEG and once as RTSTRUCT."""
    folder.mkdir(exist_ok=True)
    for name, seed in (("a", 1), ("b", 2)):
        Series(random_voxels(SHAPE, seed=seed)).write(folder / "studies" / name)
    series = Series(random_voxels(SHAPE))
    masks = {3: box(at=1), 9: box(at=7)}
    SegFile(series, masks, {3: "Liver", 9: "Spleen"}).write(folder / "masks" / "a.dcm")
    corners = {"spleen": 6.5, "LIVER": 0.5}
    rois = {
        number: Roi(
            name, [closed([(x, 1.5), (x + 3, 1.5), (x + 3, 5.5), (x, 5.5)], k) for k in (1, 2)]
        )
        for number, (name, x) in enumerate(corners.items(), start=1)
    }
    write_rtstruct(series, rois, folder / "masks" / "b.dcm")
    path = folder / "cases.csv"
    path.write_text(
        "case,image,label\na,studies/a,masks/a.dcm\nb,studies/b,masks/b.dcm\n", encoding="utf-8"
    )
    return path


def test_structures_are_known_by_name(tmp_path: Path) -> None:
    path = table(tmp_path / "set")
    dataset = open_dataset(path)
    assert (dataset.labels.values, dataset.labels.names) == ((1, 2), ("Liver", "Spleen"))
    assert [case.id for case in dataset.cases] == ["a", "b"]
    seg, rt = (read_case_mask(case)[0] for case in dataset.cases)
    np.testing.assert_array_equal(seg, np.where(box(at=1), 1, 0) + np.where(box(at=7), 2, 0))
    assert set(np.unique(rt)) == {0, 1, 2}
    np.testing.assert_array_equal(rt == 1, box(at=1))
    np.testing.assert_array_equal(rt == 2, box(at=7))
    for case in dataset.cases:
        facts = verify_case(case, dataset)
        assert facts.label_voxels == {1: 24, 2: 24}
        assert facts.geometry == read_case_image(case).geometry


def test_a_look_up_file_says_which_count(tmp_path: Path) -> None:
    path = table(tmp_path / "set")
    (path.parent / "labels.csv").write_text("value,name\n4,spleen\n", encoding="utf-8")
    dataset = open_dataset(path)
    for case in dataset.cases:
        values, _ = read_case_mask(case)
        np.testing.assert_array_equal(values, np.where(box(at=7), 4, 0))


def test_image_and_mask_in_one_folder(tmp_path: Path) -> None:
    path = table(tmp_path / "set")
    for name in ("a", "b"):
        (path.parent / "masks" / f"{name}.dcm").rename(path.parent / "studies" / name / "mask.dcm")
    rows = "case,image,label\na,studies/a,studies/a\nb,studies/b,studies/b/mask.dcm\n"
    path.write_text(rows, encoding="utf-8")
    dataset = open_dataset(path)
    for case in dataset.cases:
        assert read_case_image(case).geometry.shape == SHAPE
        np.testing.assert_array_equal(read_case_mask(case)[0] == 1, box(at=1))


def test_missing_folders_are_told(tmp_path: Path) -> None:
    path = table(tmp_path / "set")
    path.write_text("case,image,label\na,,masks/a.dcm\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="files that are there"):
        open_dataset(path)
