"""Each fault that is planted into a clean dataset is found, and nothing in the clean one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from medseg.datasets.dataset import Split
from medseg.datasets.open import open_dataset
from medseg.datasets.write import write_dataset
from medseg.io import isolated
from medseg.quality.check import CheckReport, check_dataset
from medseg.workflows.check import check
from tests.io.faulty_reader import worker_with_faults
from tests.phantoms import write_nifti

CASE, OTHER = "abdomen_02", "abdomen_10"


@pytest.fixture(scope="module")
def clean(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms of several orientations, liver, spleen and both kidneys, made small."""
    source = open_dataset(repository / "sample_data" / "abdomen")
    ids = tuple(case.id for case in source.cases[:12])
    assert CASE in ids
    folder = tmp_path_factory.mktemp("clean") / "abdomen"
    few = replace(source, cases=source.cases[:12], splits=(Split(ids[:9], ids[9:]),))
    write_dataset(few, folder, layout="msd")
    for path in folder.glob("*Tr/*.nii.gz"):  # every second voxel of the long axes
        image = nib.load(path)
        image = image.slicer[tuple(slice(None, None, 1 + (side > 50)) for side in image.shape)]
        write_nifti(path, np.asarray(image.dataobj), image.affine)
    return folder


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "abdomen"))


def run(folder: Path) -> CheckReport:
    return check_dataset(open_dataset(folder, lenient=True), workers=2)


def image_of(folder: Path, case: str = CASE) -> Path:
    return folder / "imagesTr" / f"{case}.nii.gz"


def mask_of(folder: Path, case: str = CASE) -> Path:
    return folder / "labelsTr" / f"{case}.nii.gz"


def change(
    path: Path,
    how: Callable[[NDArray[Any]], NDArray[Any]] = lambda voxels: voxels,
    affine: Callable[[NDArray[Any]], NDArray[Any]] = lambda matrix: matrix,
) -> None:
    image = nib.load(path)
    voxels = how(np.asarray(image.dataobj).copy())
    write_nifti(path, voxels, affine(image.affine.copy()))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def put(value: float, where: Any = np.s_[2:4, 3, 2]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def write(voxels: NDArray[Any]) -> NDArray[Any]:
        voxels[where] = value
        return voxels

    return write


def exchange(a: int, b: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def swap(mask: NDArray[Any]) -> NDArray[Any]:
        table = np.arange(256, dtype=np.uint8)
        table[[a, b]] = b, a
        return table[mask]

    return swap


def in_ras(
    path: Path, how: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:  # nibabel turns, not medseg
    image = nib.load(path)
    there = nib.orientations.io_orientation(image.affine)
    voxels = nib.orientations.apply_orientation(np.asarray(image.dataobj), there)
    back = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.io_orientation(image.affine)
    )
    write_nifti(path, nib.orientations.apply_orientation(how(voxels), back), image.affine)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def crumb(mask: NDArray[Any]) -> NDArray[Any]:
    mask[1:3, 1, 1] = 1
    return mask


def bitten(mask: NDArray[Any]) -> NDArray[Any]:
    liver = mask == 1
    return np.where(liver & (np.cumsum(liver).reshape(mask.shape) > 40), 0, mask)


def move(mm: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def shift(matrix: NDArray[Any]) -> NDArray[Any]:
        matrix[1, 3] += mm
        return matrix

    return shift


def stretch(matrix: NDArray[Any]) -> NDArray[Any]:
    matrix[:3, 2] *= 3
    return matrix


def both(folder: Path, how: Callable[[Path], None]) -> None:
    for path in (image_of(folder), mask_of(folder)):
        how(path)


def splits(folder: Path, train: list[str], judged: list[str]) -> None:
    (folder / "splits.json").write_text(json.dumps([{"train": train, "val": judged}]))


def grouped(folder: Path) -> None:
    raw = json.loads((folder / "dataset.json").read_text())
    raw["training"][0]["group"] = raw["training"][-1]["group"] = "patient 1"
    (folder / "dataset.json").write_text(json.dumps(raw))


def noisy(voxels: NDArray[Any]) -> NDArray[Any]:
    noise = np.random.default_rng(5).normal(0, 8, voxels.shape)
    return np.asarray(voxels * 1.02 + noise).astype(np.int16)


def copy_of(folder: Path, how: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    """Another case gets this case's scan, stored the other way round, and its mask."""
    for path in (image_of, mask_of):
        image = nib.load(path(folder))
        voxels = np.asarray(image.dataobj)
        voxels = how(voxels) if path is image_of else voxels
        affine = image.affine.copy()
        affine[:3, 3] += affine[:3, 1] * (voxels.shape[1] - 1)
        affine[:3, 1] *= -1
        write_nifti(path(folder, "abdomen_11"), voxels[:, ::-1], affine)


def other_modality(voxels: NDArray[Any]) -> NDArray[Any]:
    return np.asarray((voxels.astype(np.int32) + 1024) // 2).astype(np.int16)


FAULTS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "cut gzip of the scan": ("unreadable", lambda f: cut(image_of(f)), CASE),
    "cut gzip of the mask": ("unreadable", lambda f: cut(mask_of(f)), CASE),
    "no gzip at all": ("unreadable", lambda f: image_of(f).write_bytes(b"hello" * 99), CASE),
    "empty file": ("unreadable", lambda f: mask_of(f).write_bytes(b""), CASE),
    "scan that is gone": ("missing-file", lambda f: image_of(f).unlink(), CASE),
    "mask that is gone": ("missing-file", lambda f: mask_of(f).unlink(), CASE),
    "mask of another shape": ("grid-shape", lambda f: change(mask_of(f), lambda m: m[:-3]), CASE),
    "mask with another origin": (
        "grid-position", lambda f: change(mask_of(f), affine=move(7.5)), CASE
    ),
    "mask with another spacing": (
        "grid-position", lambda f: change(mask_of(f), affine=stretch), CASE
    ),
    "two channels": (
        "channels", lambda f: change(image_of(f), lambda v: np.stack([v, v], axis=-1)), CASE
    ),
    "unknown value": ("unknown-label", lambda f: change(mask_of(f), put(9)), CASE),
    "almost whole labels": (
        "float-labels",
        lambda f: change(mask_of(f), lambda m: np.where(m == 2, 1.9999999, m)), CASE,
    ),
    "interpolated labels": (
        "fractional-labels",
        lambda f: change(mask_of(f), lambda m: put(1.5)(m.astype(np.float32))), CASE,
    ),
    "negative labels": (
        "negative-labels", lambda f: change(mask_of(f), lambda m: put(-1)(m.astype(np.int16))), CASE
    ),
    "one-hot mask": (
        "mask-channels",
        lambda f: change(mask_of(f), lambda m: np.stack([m == 1, m == 2], -1).astype(np.uint8)),
        CASE,
    ),
    "empty mask": ("empty-mask", lambda f: change(mask_of(f), np.zeros_like), CASE),
    "no background": (
        "no-background", lambda f: change(mask_of(f), lambda m: np.maximum(m, 1)), CASE
    ),
    "a forgotten organ": (
        "missing-label", lambda f: change(mask_of(f), lambda m: np.where(m == 2, 0, m)), CASE
    ),
    "a name without voxels": (
        "unused-label",
        lambda f: edit(f, labels={"1": "liver", "2": "spleen", "3": "kidney_left",
                                  "4": "kidney_right", "5": "aorta"}), "",
    ),
    "a number left out": (
        "label-gaps",
        lambda f: edit(f, labels={"1": "liver", "2": "spleen", "3": "kidney_left",
                                  "4": "kidney_right", "7": "aorta"}), "",
    ),
    "a label in one case": (
        "few-cases",
        lambda f: (change(mask_of(f), put(5, np.s_[3:6, 3:6, 3:6])),
                   edit(f, labels={"1": "liver", "2": "spleen", "3": "kidney_left",
                                   "4": "kidney_right", "5": "tumour"})), "",
    ),
    "not a number": (
        "non-finite",
        lambda f: change(image_of(f), lambda v: put(np.nan)(v.astype(np.float32))), CASE,
    ),
    "infinity": (
        "non-finite",
        lambda f: change(image_of(f), lambda v: put(np.inf)(v.astype(np.float32))), CASE,
    ),
    "a scan of one value": ("constant-image", lambda f: change(image_of(f), np.ones_like), CASE),
    "the same scan twice": ("same-scan", lambda f: copy_of(f, lambda v: v), CASE),
    "a noisy copy": ("similar-scan", lambda f: copy_of(f, noisy), CASE),
    "a mask copied to another case": (
        "same-mask", lambda f: shutil.copy(mask_of(f), mask_of(f, OTHER)), CASE
    ),
    "wrong spacing": (
        "spacing-outlier", lambda f: both(f, lambda p: change(p, affine=stretch)), CASE
    ),
    "a slab of a scan": (
        "size-outlier", lambda f: both(f, lambda p: change(p, lambda v: v[..., ::9])), CASE
    ),
    "scaled intensities": (
        "intensity-outlier",
        lambda f: change(image_of(f), lambda v: np.where(v > -500, v * 4, v)), CASE,
    ),
    "another modality": ("mixed-modality", lambda f: change(image_of(f), other_modality), CASE),
    "a bite of the liver and no more": (
        "volume-outlier",
        lambda f: change(mask_of(f), bitten), CASE,
    ),
    "mask mirrored left to right": (
        "mask-flipped", lambda f: in_ras(mask_of(f), lambda m: m[::-1]), CASE
    ),
    "mask mirrored upside down": (
        "mask-flipped", lambda f: in_ras(mask_of(f), lambda m: m[:, :, ::-1]), CASE
    ),
    "mask moved": (
        "mask-shifted", lambda f: in_ras(mask_of(f), lambda m: np.roll(m, m.shape[0] // 6, 0)), CASE
    ),
    "kidneys exchanged": ("sides-exchanged", lambda f: change(mask_of(f), exchange(3, 4)), CASE),
    "the names of the sides exchanged": (
        "sides-exchanged",
        lambda f: edit(f, labels={"1": "liver", "2": "spleen", "3": "kidney_right",
                                  "4": "kidney_left"}), "",
    ),
    "crumbs": ("stray-parts", lambda f: change(mask_of(f), crumb), CASE),
    "a case in no list": (
        "stray-files", lambda f: shutil.copy(image_of(f), image_of(f, "abdomen_99")), ""
    ),
    "a fold with a stranger": (
        "split-unknown-case", lambda f: splits(f, ["abdomen_01", "nobody"], ["abdomen_02"]), ""
    ),
    "a case on both sides": (
        "split-overlap", lambda f: splits(f, ["abdomen_01", CASE], [CASE]), ""
    ),
    "a patient on both sides": ("split-group", grouped, ""),
}  # fmt: skip


def test_nothing_in_the_clean_copy(clean: Path) -> None:
    assert run(clean).findings == ()


@pytest.mark.parametrize("name", FAULTS)
def test_each_planted_fault_is_found(folder: Path, name: str) -> None:
    kind, plant, case = FAULTS[name]
    plant(folder)
    report = run(folder)
    found = [f for f in report.findings if f.kind == kind]
    assert found, report.findings
    assert {f.case for f in found} == {case}
    # A fault may show in several ways, but never in a case that is sound.
    sound = {f.case for f in report.findings} - {case, "", *found[0].others}
    assert sound == set(), report.findings


def test_there_are_many_faults() -> None:
    assert len(FAULTS) >= 25
    assert len({kind for kind, _, _ in FAULTS.values()}) >= 25


def test_all_at_once_and_the_report(folder: Path, tmp_path: Path) -> None:
    cut(image_of(folder, "abdomen_03"))
    change(mask_of(folder, "abdomen_04"), crumb)
    change(mask_of(folder, "abdomen_06"), put(9))
    seen: list[int] = []
    result = check(folder, tmp_path / "out", progress=lambda done, total, note: seen.append(done))
    assert seen == list(range(1, 13))
    told = {(f["case"], f["kind"]) for f in result["findings"]}
    assert told == {
        ("abdomen_03", "unreadable"),
        ("abdomen_04", "stray-parts"),
        ("abdomen_06", "unknown-label"),
    }
    assert json.loads((tmp_path / "out" / "check.json").read_text()) == result
    page = (tmp_path / "out" / "check.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "<script" not in page
    assert "http" not in page.replace('http-equiv="', "")


def test_a_file_that_crashes_its_reader_is_a_finding(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "_START", worker_with_faults(scan="read_or_fail"))
    scan = sitk.ReadImage(str(image_of(folder)))
    table = ["case,image,label"]
    for name, case in (("segfault", OTHER), ("good", CASE)):
        sitk.WriteImage(scan, str(tmp_path / f"{name}.nrrd"))
        table.append(f"{name},{name}.nrrd,{mask_of(folder, case)}")
    (tmp_path / "cases.csv").write_text("\n".join(table))
    (tmp_path / "labels.csv").write_text("value,name\n1,a\n2,b\n3,c\n4,d\n")
    result = check(tmp_path / "cases.csv", tmp_path / "out")
    (found,) = [row for row in result["findings"] if row["kind"] == "unreadable"]
    assert found["case"] == "segfault"
    assert "the reader crashed on this file (SIGSEGV)" in found["got"]
    assert (tmp_path / "out" / "check.html").is_file()
