"""The table of formats: names, folders, and suffixes that nobody knows."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from medseg.core.errors import FileError
from medseg.core.labels import LabelSet
from medseg.core.results import Prediction
from medseg.io.formats import SCAN_SUFFIXES, case_name, find_scans, read_label_names, write_mask
from tests.phantoms import lopsided_geometry


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("a.nii.gz", "a"), ("a.nii", "a"), ("A.NII.GZ", "A"), ("x/y.z/a.b.nii.gz", "a.b"),
        ("a.nrrd", "a"), ("a.mha", "a"), ("a.hdr", "a"), ("a.img.gz", "a"), ("a.png", "a"),
        ("a.tiff", "a"), ("a.jpeg", "a"), ("a.gz", "a.gz"), ("a", "a"), (".nii.gz", ".nii.gz"),
    ],
)  # fmt: skip
def test_case_name(name: str, case: str) -> None:
    assert case_name(name) == case
    assert case_name(Path(name)) == case


def test_scans_are_found_below_sorted_and_hidden_ones_left(tmp_path: Path) -> None:
    for name in (
        "b.nii.gz", "a.NII", "sub/c.mha", "sub/deep/d.png", "e.txt", "f.json", "g.img", "h.raw",
        ".hidden.nii.gz", ".folder/i.nii.gz", ".medseg-x.nii.gz",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_scans(tmp_path)]
    assert found == sorted(found)
    assert set(found) == {"a.NII", "b.nii.gz", "sub/c.mha", "sub/deep/d.png"}


def test_links_out_of_the_folder_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "a.nii.gz").touch()
    (outside / "b.nii.gz").touch()
    (inside / "linked.nii.gz").symlink_to(outside / "b.nii.gz")
    (inside / "linked_folder").symlink_to(outside)
    (inside / "same.nii.gz").symlink_to(inside / "a.nii.gz")
    with caplog.at_level(logging.WARNING):
        names = [path.name for path in find_scans(inside)]
    assert names == ["a.nii.gz", "same.nii.gz"]
    assert "1 link" in caplog.text


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.nii").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert find_scans(tmp_path / "link") == [tmp_path / "link" / "a.nii"]


def test_longer_suffixes_come_first() -> None:
    assert SCAN_SUFFIXES.index(".nii.gz") < SCAN_SUFFIXES.index(".nii")


def test_an_unknown_suffix_for_a_mask(tmp_path: Path) -> None:
    geometry = lopsided_geometry()
    mask = Prediction(np.zeros(geometry.shape, np.uint8), geometry, LabelSet.from_names({1: "a"}))
    with pytest.raises(FileError, match=r"\.nii\.gz"):
        write_mask(tmp_path / "mask.jpg", mask)


def test_label_names_of_a_format_that_has_none(tmp_path: Path) -> None:
    geometry = lopsided_geometry()
    mask = Prediction(np.zeros(geometry.shape, np.uint8), geometry, LabelSet.from_names({1: "a"}))
    write_mask(tmp_path / "mask.nrrd", mask)
    assert read_label_names(tmp_path / "mask.nrrd") is None
    with pytest.raises(FileError, match="no such file"):
        read_label_names(tmp_path / "missing.nii.gz")
