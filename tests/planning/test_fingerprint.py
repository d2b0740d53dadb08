"""The fingerprint of scans whose numbers are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medseg.core.geometry import ALL_ORIENTATIONS, Geometry
from medseg.core.labels import LabelSet
from medseg.core.plan import Fingerprint
from medseg.datasets.inspect import verify_cases
from medseg.datasets.msd import read_msd
from medseg.planning.fingerprint import CaseLook, take_fingerprint
from tests.phantoms import write_nifti

LABELS = {1: "liver", 2: "spleen", 4: "tumour"}
# Shape and spacing along RAS axes, how the file is turned, what value the liver has.
CASES = (
    ((9, 7, 5), (0.7, 1.1, 3.0), 0, 100),
    ((11, 7, 6), (0.8, 1.1, 2.0), 13, 200),
    ((10, 8, 4), (1.0, 0.9, 9.0), 46, 300),
)


def write(folder: Path) -> Path:
    """Case n: n + 1 liver voxels, two of the spleen but in the last case none, no tumour."""
    entries = []
    for number, (shape, spacing, turn, value) in enumerate(CASES):
        image, mask = np.zeros(shape, np.int16), np.zeros(shape, np.uint8)
        mask[1 : 2 + number + 1, 2, 3] = 1
        if number < 2:
            mask[4, 4:6, 1] = 2
        image[mask == 1], image[mask == 2] = value, -50
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = (-30.5, 12.0, 7.0)
        grid, orientation = Geometry(shape, affine), ALL_ORIENTATIONS[turn]
        affine = grid.reoriented(orientation).affine_ras
        name = f"case_{number}.nii.gz"
        write_nifti(folder / "imagesTr" / name, orientation.apply(image), affine)
        write_nifti(folder / "labelsTr" / name, orientation.apply(mask), affine)
        entries.append({"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"})
    names = {"0": "background", **{str(value): name for value, name in LABELS.items()}}
    about = {"name": "x", "modality": {"0": "CT"}, "labels": names, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Fingerprint:
    data = read_msd(write(tmp_path_factory.mktemp("data")))
    return take_fingerprint(data, data.cases, data.labels)


def test_grids_are_told_along_ras_axes(found: Fingerprint) -> None:
    assert found.cases == 3
    assert not found.two_dimensional
    assert found.median_spacing_mm == pytest.approx((0.8, 1.1, 3.0))
    # A tenth of the way, of two steps, from the lowest to the middle: a fifth of one step.
    assert found.low_spacing_mm == pytest.approx((0.72, 0.94, 2.2))
    assert found.median_shape == (10, 7, 5)
    assert found.max_shape == (11, 8, 6)


def test_labels_are_counted(found: Fingerprint) -> None:
    assert found.label_cases == {"liver": 3, "spleen": 2, "tumour": 0}
    voxels = 9 * 7 * 5 + 11 * 7 * 6 + 10 * 8 * 4
    assert found.label_voxel_share["liver"] == pytest.approx((2 + 3 + 4) / voxels)
    assert found.label_voxel_share["spleen"] == pytest.approx(4 / voxels)
    assert found.label_voxel_share["tumour"] == 0


def test_intensities_are_those_of_the_foreground(found: Fingerprint) -> None:
    (channel,) = found.channels
    values = np.array([100] * 2 + [200] * 3 + [300] * 4 + [-50] * 4, dtype=float)
    assert (channel.name, channel.modality) == ("CT", "CT")
    assert channel.foreground_mean == pytest.approx(values.mean())
    assert channel.foreground_std == pytest.approx(values.std())
    assert channel.percentile_00_5 == pytest.approx(np.percentile(values, 0.5))
    assert channel.percentile_99_5 == pytest.approx(np.percentile(values, 99.5))
    shares = [1 - 4 / 315, 1 - 5 / 462, 1 - 4 / 320]
    assert channel.zero_share == pytest.approx(np.mean(shares))


def test_only_the_cases_that_are_given_count(tmp_path: Path) -> None:
    data = read_msd(write(tmp_path))
    told: list[tuple[int, int, str]] = []
    one = take_fingerprint(
        data, data.select(("case_1",)), data.labels, progress=lambda *facts: told.append(facts)
    )
    assert told == [(1, 1, "case_1")]
    assert one.median_spacing_mm == one.low_spacing_mm == pytest.approx((0.8, 1.1, 2.0))
    assert one.max_shape == (11, 7, 6)
    assert one.channels[0].percentile_99_5 == 200
    assert "case" not in one.model_dump_json().replace('"cases"', "").replace("label_cases", "")


def test_labels_may_be_united(tmp_path: Path) -> None:
    data = read_msd(write(tmp_path))
    united = take_fingerprint(data, data.cases, data.labels.regroup("organ=liver+spleen"))
    assert united.label_cases == {"organ": 3}
    assert united.label_voxel_share["organ"] == pytest.approx(13 / (315 + 462 + 320))


def test_workers_change_nothing(tmp_path: Path) -> None:
    data = read_msd(write(tmp_path))
    one, many = (take_fingerprint(data, data.cases, data.labels, workers=n) for n in (1, 3))
    assert one == many
    assert Fingerprint.model_validate_json(one.model_dump_json()) == one


def test_cases_that_a_check_has_looked_at_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_msd(write(tmp_path))
    read = take_fingerprint(data, data.cases, data.labels)
    look = CaseLook(data, data.cases[1:], data.labels)
    assert not verify_cases(data.cases, data, look=look).problems
    # The others are read, of course.
    assert take_fingerprint(data, data.cases, data.labels, seen=look) == read

    look = CaseLook(data, data.cases, data.labels)
    verify_cases(data.cases, data, look=look)
    monkeypatch.delattr("medseg.planning.fingerprint.read_case_image")
    assert take_fingerprint(data, data.cases, data.labels, seen=look) == read


def test_many_voxels_are_sampled_evenly(tmp_path: Path) -> None:
    # 64,000 voxels of one label hold 0 .. 63,999: an even sample keeps the percentiles.
    values = np.arange(40**3, dtype=np.int32).reshape(40, 40, 40)
    write_nifti(tmp_path / "imagesTr" / "a.nii.gz", values, np.diag([1.0, 2.0, 3.0, 1.0]))
    mask = np.ones_like(values, dtype=np.uint8)
    write_nifti(tmp_path / "labelsTr" / "a.nii.gz", mask, np.diag([1.0, 2.0, 3.0, 1.0]))
    about = {"labels": {"1": "all"}, "modality": {"0": "MR"}, "training": ["imagesTr/a.nii.gz"]}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    data = read_msd(tmp_path)
    (channel,) = take_fingerprint(data, data.cases, LabelSet.from_names({1: "all"})).channels
    assert channel.foreground_mean == pytest.approx(32_000, rel=1e-3)
    assert channel.percentile_00_5 == pytest.approx(320, abs=10)
    assert channel.percentile_99_5 == pytest.approx(63_680, abs=10)


def test_places_are_told_along_ras_axes_whatever_the_file_turns(found: Fingerprint) -> None:
    # The liver fills voxels 1 to n + 2 along R, voxel 2 along A and 3 along S.
    along_r = [((3 + n) / 2 + 0.5) / shape[0] for n, (shape, *_) in enumerate(CASES)]
    along_s = [3.5 / shape[2] for shape, *_ in CASES]
    place, spread = found.label_places["liver"], found.label_place_spread["liver"]
    assert (place[0], place[2]) == pytest.approx((np.mean(along_r), np.mean(along_s)))
    assert (spread[0], spread[2]) == pytest.approx((np.std(along_r), np.std(along_s)))
    assert set(found.label_places) == {"liver", "spleen"}
    assert found.pair_sides == {}


def test_sides_of_pairs_are_seen_in_the_patient_not_in_the_file(tmp_path: Path) -> None:
    entries = []
    for number, turn in enumerate((0, 5, 17, 40)):
        mask = np.zeros((9, 7, 5), np.uint8)
        # The last case has them exchanged.
        left, right = (1, 7) if number < 3 else (7, 1)
        mask[left, 3, 2], mask[right, 3, 2] = 1, 2
        grid, orientation = Geometry(mask.shape, np.diag([1, 2, 3, 1])), ALL_ORIENTATIONS[turn]
        affine = grid.reoriented(orientation).affine_ras
        for folder in ("imagesTr", "labelsTr"):
            write_nifti(tmp_path / folder / f"c{number}.nii.gz", orientation.apply(mask), affine)
        entries.append(
            {"image": f"imagesTr/c{number}.nii.gz", "label": f"labelsTr/c{number}.nii.gz"}
        )
    names = {"0": "background", "1": "kidney_left", "2": "kidney_right"}
    about = {"name": "x", "modality": {"0": "CT"}, "labels": names, "training": entries}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    data = read_msd(tmp_path)
    assert take_fingerprint(data, data.cases, data.labels).pair_sides == {"kidney_left": 0.75}
