"""Masks in, numbered masks and a table out: volumes and pictures."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medseg.core.errors import InputError, LabelError, SettingsError
from medseg.evaluation.lesions import lesion_scores
from medseg.io.formats import read_label_names, read_mask
from medseg.postprocess.instances import InstanceOptions
from medseg.workflows.instances import least_of, make_instances
from tests.phantoms import oblique_affine, write_nifti


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "instances.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_volumes_with_scans(tmp_path: Path) -> None:
    mask = np.zeros((12, 9, 7), np.int16)
    mask[1:4, 1:4, 1:3], mask[8:10, 5:8, 4:6], mask[0, 8, 6] = 300, 300, 2
    for name, shift in (("a", 0), ("b", 1)):
        moved = np.roll(mask, shift, axis=0)
        write_nifti(tmp_path / "masks" / f"{name}.nii.gz", moved, oblique_affine())
        scan = (moved * 10).astype(np.int16)
        write_nifti(tmp_path / "scans" / f"{name}.nii", scan, oblique_affine())
    found = make_instances(
        tmp_path / "masks", tmp_path / "out", scans=tmp_path / "scans", labels="300"
    )
    assert list(found["cases"]) == ["a", "b"]
    rows = rows_of(tmp_path / "out")
    assert [(row["case"], row["number"], row["label"]) for row in rows] == [
        ("a", "1", "300"), ("a", "2", "300"), ("b", "1", "300"), ("b", "2", "300"),
    ]  # fmt: skip
    assert rows[0]["volume_mm3"] == f"{2 * 3 * 2 * 1.5 * 2 * 3.5:g}"
    assert {row["mean"] for row in rows} == {"3000"}
    image = nib.load(tmp_path / "out" / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj) > 0, mask == 300)
    np.testing.assert_allclose(image.affine, oblique_affine(), atol=1e-6)
    names = read_label_names(tmp_path / "out" / "a.nii.gz")
    assert names is not None
    assert names.names == ("300 1", "300 2")


def test_pictures(tmp_path: Path) -> None:
    pixels = np.zeros((30, 40), np.uint8)
    pixels[2:8, 3:9], pixels[20:29, 30:38], pixels[2, 35] = 1, 1, 1
    (tmp_path / "masks").mkdir()
    Image.fromarray(pixels).save(tmp_path / "masks" / "cells.png")
    Image.fromarray(np.dstack([pixels * 7, pixels, pixels])).save(tmp_path / "cells.png")
    make_instances(
        tmp_path / "masks", tmp_path / "out", scans=tmp_path / "cells.png",
        options=InstanceOptions(least=least_of("2mm2")),
    )  # fmt: skip
    numbers = np.asarray(Image.open(tmp_path / "out" / "cells.png"))
    assert numbers[3, 4] == 1
    assert numbers[21, 31] == 2
    assert numbers[2, 35] == 0
    first, second = rows_of(tmp_path / "out")
    assert (first["area_mm2"], second["area_mm2"]) == ("36", "72")
    assert (first["mean_red"], first["mean_green"]) == ("7", "1")
    assert float(second["diameter_max_mm"]) == pytest.approx(np.hypot(9, 8), abs=1e-5)


def test_odd_masks_and_bad_ones(tmp_path: Path) -> None:
    home = tmp_path / "masks"
    many = np.arange(300, dtype=np.uint16).reshape(10, 6, 5)
    write_nifti(home / "many.nii.gz", many, oblique_affine())
    write_nifti(home / "empty.nii.gz", many * 0, oblique_affine())
    write_nifti(home / "full.nii.gz", np.ones_like(many), oblique_affine())
    write_nifti(home / "four.nii.gz", np.ones((4, 3, 2, 2), np.uint8), oblique_affine())
    write_nifti(home / "minus.nii.gz", -many.astype(np.int16), oblique_affine())
    write_nifti(home / "half.nii.gz", many / 2.0, oblique_affine())
    found = make_instances(home, tmp_path / "out")
    assert sorted(found["failed"]) == ["four", "half", "minus"]
    assert [row["case"] for row in found["rows"]].count("many") == 299
    assert [row["case"] for row in found["rows"]].count("full") == 1
    assert not read_mask(tmp_path / "out" / "empty.nii.gz")[0].any()
    assert not list((tmp_path / "out").glob("four*"))
    with pytest.raises(InputError, match="--out"):
        make_instances(home, home)
    with pytest.raises(LabelError, match="lung"):
        make_instances(home / "full.nii.gz", tmp_path / "out", labels="lung")
    with pytest.raises(SettingsError, match="50mm3"):
        least_of("much")


def test_real_nuclei(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    """What touches is told apart: better than components, on the true foreground."""
    home = shared_data("nuclei_2d") / "labels"
    (tmp_path / "masks").mkdir()
    truth = {}
    for path in sorted(home.glob("*.png"))[:12]:
        truth[path.stem] = np.asarray(Image.open(path)).T[..., None]
        pixels = (np.asarray(Image.open(path)) > 0).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "masks" / path.name)
    quality = {}
    for split in ("watershed", "components"):
        options = InstanceOptions(split)  # type: ignore[arg-type]
        found = make_instances(tmp_path / "masks", tmp_path / split, options=options)
        quality[split] = np.mean([
            lesion_scores(read_mask(path)[0], truth[case]).panoptic_quality
            for case, path in found["cases"].items()
        ])  # fmt: skip
    assert quality["watershed"] > quality["components"] + 0.03
    assert quality["watershed"] > 0.85
