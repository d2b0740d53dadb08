"""The committed phantoms are what the script makes, and are what they are meant to be."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from medseg.io.formats import read_mask, read_scan


@pytest.fixture(scope="module")
def script(repository: Path) -> Iterator[ModuleType]:
    path = repository / "sample_data" / "make_phantoms.py"
    spec = importlib.util.spec_from_file_location("make_phantoms", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_phantoms"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_phantoms"]


@pytest.mark.parametrize("case", [6, 17])
def test_the_same_seed_gives_the_same_voxels(
    script: ModuleType, repository: Path, case: int
) -> None:
    voxels, mask, affine = script.make_volume(case, 0)
    folder = repository / "sample_data" / "abdomen"
    scan = read_scan(folder / "imagesTr" / f"abdomen_{case:02d}.nii.gz")
    assert np.array_equal(scan.voxels()[0], voxels)
    assert np.array_equal(read_mask(folder / "labelsTr" / f"abdomen_{case:02d}.nii.gz")[0], mask)
    assert np.allclose(scan.geometry.affine_ras, affine, atol=1e-4)


def test_the_same_seed_gives_the_same_slice(script: ModuleType, repository: Path) -> None:
    pixels, mask = script.make_slice(3, 0)
    folder = repository / "sample_data" / "abdomen_2d"
    got = read_scan(folder / "imagesTr" / "slice_03.png").voxels()
    assert np.array_equal(got[0, :, :, 0].T, pixels)
    assert np.array_equal(read_mask(folder / "labelsTr" / "slice_03.png")[0][:, :, 0].T, mask)


def test_another_seed_gives_another_patient(script: ModuleType) -> None:
    one, two = script.make_slice(0, 0)[1], script.make_slice(0, 1)[1]
    assert not np.array_equal(one, two)


def test_organs_lie_on_their_side_of_the_patient(repository: Path) -> None:
    """In RAS+ x grows to the patient's right: liver and right kidney there, the rest left."""
    folder = repository / "sample_data" / "abdomen"
    names = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["labels"]
    seen = set()
    for entry in sorted((folder / "labelsTr").iterdir()):
        mask, scan = read_mask(entry)
        seen.add(scan.geometry.axis_codes)
        middle = scan.geometry.affine_ras @ [*((n - 1) / 2 for n in mask.shape), 1]
        for value, name in names.items():
            if value == "0":
                continue
            centre = np.append(np.mean(np.nonzero(mask == int(value)), axis=1), 1.0)
            right_mm = (scan.geometry.affine_ras @ centre - middle)[0]
            assert (right_mm > 0) == (name in ("liver", "kidney_right")), (entry.name, name)
    assert len(seen) >= 8


def test_the_folds_name_every_case_once_and_the_data_stay_small(repository: Path) -> None:
    for name, held_out in (("abdomen", 4), ("abdomen_2d", 2)):
        folder = repository / "sample_data" / name
        (fold,) = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
        description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        assert len(fold["val"]) == held_out
        assert len({*fold["train"], *fold["val"]}) == description["numTraining"]
        for pair in description["training"]:
            image, label = read_scan(folder / pair["image"]), read_scan(folder / pair["label"])
            assert image.geometry == label.geometry
    files = [path for path in (repository / "sample_data").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
