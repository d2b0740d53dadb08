"""A training run learns a profile that can judge: its package alone tells good masks from bad."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import medseg
from medseg.core.labels import LabelSet
from medseg.core.profile import Profile
from medseg.datasets.open import open_dataset
from medseg.datasets.reading import read_case_image, read_case_mask
from medseg.package.package import load_package
from medseg.quality.features import Scale, View
from medseg.quality.score import judge
from tests.phantoms import write_msd_dataset

LABELS = LabelSet.from_names({1: "low", 2: "high"})


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    data = write_msd_dataset(tmp_path_factory.mktemp("data"), cases=15)
    run = tmp_path_factory.mktemp("run") / "run"
    medseg.train(
        data, run, seed=1, epochs=2, inner_share=0.3, base_features=4,
        plan={"training": {"batch_size": 2, "steps_per_epoch": 20}},
    )  # fmt: skip
    return data, run


def test_the_package_holds_a_profile_without_names(run_folder: tuple[Path, Path]) -> None:
    profile = load_package(run_folder[1] / "model").profile
    assert profile is not None
    assert profile.cases == 7
    assert profile.alone is not None
    assert profile.with_confidence is not None
    assert profile.alone.masks > 300
    assert "case_" not in profile.to_json()
    notes = json.loads((run_folder[1] / "quality.json").read_text())
    made = [one["made"] for one in notes["samples"]]
    assert {"stage", "model", "planted"} == set(made)
    assert "case_" not in json.dumps(notes)


def test_the_profile_tells_good_masks_from_bad(run_folder: tuple[Path, Path]) -> None:
    data, run = run_folder
    profile = load_package(run / "model").profile
    assert profile is not None
    dataset = open_dataset(data)
    for case in dataset.select(tuple(json.loads((data / "splits.json").read_text())[0]["val"])):
        mask, grid = read_case_mask(case)
        view = View(grid.geometry, read_case_image(case).voxels(), Scale(profile.absolute))
        sound = dice_of(profile, view, mask)
        half = mask.copy()
        half[:, : mask.shape[1] // 2] = 0
        moved = np.roll(mask, 4, axis=1)
        assert max(dice_of(profile, view, half), dice_of(profile, view, moved)) < sound - 0.1


def dice_of(profile: Profile, view: View, mask: np.ndarray) -> float:
    found = judge(view.look(mask, LABELS), profile).labels
    return float(np.mean([one.dice[0] for one in found.values() if one.dice is not None]))
