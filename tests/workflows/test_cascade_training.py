"""Two stages: what the second learns from was made by networks that never saw the case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import medseg
from medseg.core.errors import Interrupted, SettingsError
from medseg.package.package import load_package
from medseg.training import loader
from medseg.training.cache import CachedCase
from medseg.training.loader import Batches
from medseg.transforms.augment_earlier import EarlierFaults
from tests.models import small_plan
from tests.phantoms import write_msd_dataset

SMALL: dict[str, Any] = {
    "configuration": "cascade", "epochs": 1, "base_features": 4, "inner_share": 0.0, "seed": 1,
    "device": "cpu", "plan": {"training": {"steps_per_epoch": 2, "batch_size": 1}},
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_msd_dataset(tmp_path_factory.mktemp("data") / "msd", cases=4)


@pytest.fixture(scope="module")
def cascade(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its second stage, and went on."""
    out, notes = tmp_path_factory.mktemp("run") / "run", []

    def progress(phase: str, done: int, total: int, note: str) -> None:
        notes.append(note)

    def stop() -> bool:
        return any(note.startswith("fine: step") for note in notes)

    with pytest.raises(Interrupted):
        medseg.train(dataset, out, progress=progress, stop=stop, **SMALL)
    notes.clear()
    result = medseg.train(dataset, out, progress=progress, resume=True, **SMALL)
    assert not [note for note in notes if note.startswith("low: step")]
    assert result["seconds"].keys() == {"low", "fine", "total"}
    assert json.loads((out / "fine" / "outcome.json").read_text())["steps"] == 2
    return out


def voxels(path: Path) -> Any:
    return np.asarray(nib.load(path).dataobj)


def test_each_case_has_a_mask_of_a_network_that_never_saw_it(dataset: Path, cascade: Path) -> None:
    split = json.loads((dataset / "splits.json").read_text())[0]
    folds = json.loads((cascade / "low" / "run.json").read_text())["splits"]
    judged = [case for _, validation in folds.values() for case in validation]
    assert sorted(judged) == sorted(split["train"])
    for number, (learned, validation) in folds.items():
        assert not set(learned) & {*validation, *split["val"]}
        network = medseg.load_model(cascade / "low" / f"fold_{number}" / "model", "cpu")
        for case in validation:
            name = f"{case}.nii.gz"
            made = voxels(cascade / "low" / f"fold_{number}" / "validation" / name)
            assert np.array_equal(made, network.predict(dataset / "imagesTr" / name).labels)


def test_the_package_gives_what_was_validated(dataset: Path, cascade: Path) -> None:
    model = medseg.load_model(cascade, "cpu", backend="torch")
    assert model.has_stages
    assert (model.plan.cascade_labels, model.plan.network.in_channels) == (2, 3)
    package = load_package(cascade / "model")
    assert package.previous is not None
    assert len(package.previous.members) == 3  # the mean of the first stage's folds
    for path in (cascade / "fine" / "validation").glob("*.nii.gz"):
        found = model.predict(dataset / "imagesTr" / path.name).labels
        assert np.array_equal(voxels(path), found)


def test_what_does_not_go_with_a_cascade_is_said(dataset: Path, tmp_path: Path) -> None:
    for settings, words in (
        ({"plan_file": "plan.json"}, "--plan plan.json: expected one network"),
        ({"start_from": "model"}, "--from model: expected one network"),
        ({"configuration": "2d,cascade"}, "auto, best, cascade, or one or several of"),
    ):
        with pytest.raises(SettingsError, match=words):
            medseg.train(dataset, tmp_path / "run", **{**SMALL, **settings})
    splits = json.loads((dataset / "splits.json").read_text())
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("imagesTr", "labelsTr", "dataset.json"):
        (folder / name).symlink_to(dataset / name)
    (folder / "splits.json").write_text(json.dumps(splits * 2))
    with pytest.raises(SettingsError, match="each case in the validation part of one fold"):
        medseg.train(folder, tmp_path / "run", fold="all", **SMALL)


def case_with_labels() -> CachedCase:
    """A case whose labels of the first stage are the true ones."""
    label = np.random.default_rng(0).integers(0, 3, (20, 15, 9)).astype(np.uint8)
    places = {value: np.argwhere(label == value) for value in (1, 2)}
    image = label[None].astype(np.float32)
    return CachedCase("one", image, label, places, earlier=label)


@pytest.mark.parametrize("mirrored", [False, True])
def test_labels_follow_the_patch_and_its_mirror(
    monkeypatch: pytest.MonkeyPatch, mirrored: bool
) -> None:
    monkeypatch.setattr(loader, "draw_faults", lambda rng, count: EarlierFaults())
    changes: dict[str, Any] = {
        "cascade_labels": 2, "network.in_channels": 3,
        "inference.left_right_pairs": [["low", "high"]],
        "training.augmentation.mirror_axes": [0] if mirrored else [],
    }  # fmt: skip
    batches = Batches(
        [case_with_labels()], small_plan(**changes), seed=3, device=torch.device("cpu")
    )
    for step in range(6):
        images, targets = batches.batch(step)
        assert images.shape == (2, 3, 16, 12, 8)
        for value in (1, 2):
            assert torch.equal(images[:, value] == 1, targets.labels == value)
    assert any(batches._exchanged(draw) for s in range(6) for draw in batches.draw(s)) == mirrored


def test_faults_reach_the_network_and_leave_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        loader, "draw_faults", lambda rng, count: EarlierFaults(moves=((1, "grown", 8),))
    )
    plan = small_plan(**{"cascade_labels": 2, "network.in_channels": 3})
    batches = Batches([case_with_labels()], plan, seed=3, device=torch.device("cpu"))
    images, targets = batches.batch(0)
    assert not images[:, 2].any()
    assert (targets.labels == 2).any()
