"""Training as a whole: run folder, folds, labels, 2D, stop and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import medseg
from medseg.core.errors import DatasetError, Interrupted, MedsegError, SettingsError
from medseg.package.package import load_package
from tests.phantoms import blobs, write_msd_dataset

SMALL: dict[str, Any] = {
    "epochs": 2,
    "base_features": 4,
    "inner_share": 0.3,
    "plan": {
        "patch_size": [16, 16, 8],
        "training": {"steps_per_epoch": 2},
        "network": {
            "features": [4, 8], "strides": [[1, 1, 1], [2, 2, 2]],
            "kernels": [[3, 3, 3], [3, 3, 3]],
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_msd_dataset(tmp_path_factory.mktemp("data") / "msd", cases=8)


def weights(run: Path) -> bytes:
    return (run / "model" / "weights.safetensors").read_bytes()


def test_run_folder_and_package(dataset: Path, tmp_path: Path) -> None:
    phases = set()
    result = medseg.train(
        dataset, tmp_path / "run", seed=1,
        progress=lambda phase, done, total, note: phases.add(phase), **SMALL,
    )  # fmt: skip
    assert phases == {"check", "fingerprint", "profile", "preprocess", "train", "validate"}
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[-1]["dice"].keys() == {"low", "high"}
    assert any((run / "tensorboard").iterdir())
    assert any((run / "overlays").glob("*.png"))
    package = load_package(run / "model")
    split = json.loads((dataset / "splits.json").read_text())[0]
    assert package.model.metrics["validation"]["cases"] == len(split["val"])
    # The same figures come from evaluating the masks that lie in the run.
    again = medseg.evaluate(run / "validation", dataset / "labelsTr", cases=split["val"])
    assert again["mean"]["dice"] == pytest.approx(result["metrics"]["mean"]["dice"])
    text = (run / "model" / "model.json").read_text()
    assert not any(case in text for case in (*split["train"], *split["val"], str(tmp_path)))


def test_validation_cases_shape_nothing(dataset: Path, tmp_path: Path) -> None:
    # The same training cases beside other validation cases give the same weights.
    first = json.loads((dataset / "splits.json").read_text())[0]
    medseg.train(dataset, tmp_path / "a", seed=1, **SMALL)
    changed = tmp_path / "changed"
    changed.mkdir()
    for name in ("imagesTr", "labelsTr"):
        (changed / name).symlink_to(dataset / name)
    (changed / "dataset.json").write_text((dataset / "dataset.json").read_text())
    (changed / "splits.json").write_text(
        json.dumps([{"train": first["train"], "val": first["val"][:1]}])
    )
    medseg.train(changed, tmp_path / "b", seed=1, **SMALL)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_labels_are_selected_and_merged(dataset: Path, tmp_path: Path) -> None:
    medseg.train(dataset, tmp_path / "run", labels="organ=1+2", fold="all-data", **SMALL)
    model = medseg.load_model(tmp_path / "run")
    assert model.labels.names == ("organ",)
    assert model.plan.network.classes == 2
    with pytest.raises(MedsegError, match="heart"):
        medseg.train(dataset, tmp_path / "other", labels="heart", **SMALL)


def test_all_folds_become_one_package(tmp_path: Path) -> None:
    data = write_msd_dataset(tmp_path / "data", cases=4, splits=False)
    result = medseg.train(data, tmp_path / "run", fold="all", **{**SMALL, "epochs": 1})
    assert len(result["folds"]) == 4
    model = medseg.load_model(tmp_path / "run")
    image = next((data / "imagesTr").glob("*.nii.gz"))
    assert model.predict(image).provenance["members"] == 4


def write_2d(folder: Path, *, suffix: str) -> Path:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(5):
        image, mask = blobs((32, 24, 1), seed=number)
        grey = np.clip(image[..., 0] / 4 + 20, 0, 255).astype(np.uint8)
        Image.fromarray(grey.T).save(folder / "imagesTr" / f"s{number}{suffix}")
        Image.fromarray(mask[..., 0].T).save(folder / "labelsTr" / f"s{number}{suffix}")
    entries = [
        {"image": f"imagesTr/s{n}{suffix}", "label": f"labelsTr/s{n}{suffix}"} for n in range(5)
    ]
    facts = {"modality": {"0": "grey"}, "labels": {"1": "low", "2": "high"}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def test_the_same_code_trains_2d(tmp_path: Path) -> None:
    data = write_2d(tmp_path / "data", suffix=".png")
    settings = {"epochs": 2, "base_features": 4, "plan": {"training": {"steps_per_epoch": 2}}}
    result = medseg.train(data, tmp_path / "run", **settings)
    plan = medseg.load_model(tmp_path / "run").plan
    assert plan.network.spatial_dims == 2
    assert plan.patch_size[2] == 1
    assert result["metrics"]["mean"]["dice"] is not None
    mask = medseg.load_model(tmp_path / "run").predict(data / "imagesTr" / "s0.png")
    assert mask.labels.shape == (32, 24, 1)


def test_one_case_trains_on_all(tmp_path: Path) -> None:
    data = write_msd_dataset(tmp_path / "data", cases=1, splits=False)
    result = medseg.train(data, tmp_path / "run", **{**SMALL, "epochs": 1})
    assert result["metrics"] is None


def test_a_run_is_not_overwritten_and_not_mixed_up(dataset: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "epochs": 1}
    with pytest.raises(SettingsError, match=r"no run\.json"):
        medseg.train(dataset, tmp_path / "run", resume=True, **settings)
    medseg.train(dataset, tmp_path / "run", **settings)
    with pytest.raises(SettingsError, match="Add --resume"):
        medseg.train(dataset, tmp_path / "run", **settings)
    with pytest.raises(SettingsError, match="other seed"):
        medseg.train(dataset, tmp_path / "run", resume=True, seed=9, **settings)
    with pytest.raises(SettingsError, match="budget or a number of epochs"):
        medseg.train(dataset, tmp_path / "new", budget="1min", epochs=1)


def test_a_fault_in_the_dataset_does_not_block_the_folder(tmp_path: Path) -> None:
    data = write_msd_dataset(tmp_path / "data", cases=3, splits=False)
    label = data / "labelsTr" / "case_001.nii.gz"
    good = label.read_bytes()
    label.write_bytes(good[: len(good) // 2])
    settings = {**SMALL, "epochs": 1}
    with pytest.raises(DatasetError, match="case_001"):
        medseg.train(data, tmp_path / "run", **settings)
    label.write_bytes(good)
    medseg.train(data, tmp_path / "run", **settings)


def test_a_stop_while_preprocessing_is_gone_on_from(dataset: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    with pytest.raises(Interrupted):
        medseg.train(
            dataset, tmp_path / "run", stop=lambda: heard.count("preprocess") > 2,
            progress=lambda phase, done, total, note: heard.append(phase), **SMALL,
        )  # fmt: skip
    result = medseg.train(dataset, tmp_path / "run", resume=True, **SMALL)
    assert result["steps"] == 4


def stop_and_resume(dataset: Path, folder: Path, *, after_steps: int) -> bytes:
    """Train by the command line, SIGTERM after some steps, resume; the final weights."""
    command = [
        sys.executable, "-m", "medseg", "train", str(dataset), "--out", str(folder), "--epochs",
        "6", "--deterministic", "--seed", "5", "--device", "cpu", "--set", "base_features=4",
        "--set", "plan.training.steps_per_epoch=5",
    ]  # fmt: skip
    log = folder / "log.jsonl"
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    wanted = after_steps // 5
    while process.poll() is None:
        if log.is_file() and len(log.read_text().splitlines()) >= wanted:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.02)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert not (folder / "model").exists()
    subprocess.run([*command, "--resume"], check=True, capture_output=True, timeout=240)
    return weights(folder)


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM on Windows")
def test_sigterm_and_resume_give_the_same_bits(dataset: Path, tmp_path: Path) -> None:
    settings = {
        "epochs": 6, "deterministic": True, "seed": 5, "device": "cpu", "base_features": 4,
        "plan": {"training": {"steps_per_epoch": 5}},
    }  # fmt: skip
    medseg.train(dataset, tmp_path / "whole", **settings)
    stopped = stop_and_resume(dataset, tmp_path / "stopped", after_steps=10)
    assert stopped == weights(tmp_path / "whole")


@pytest.mark.acceptance
@pytest.mark.parametrize("after_steps", [5, 15, 20, 25])
def test_sigterm_at_several_moments(dataset: Path, tmp_path: Path, after_steps: int) -> None:
    undisturbed = stop_and_resume(dataset, tmp_path / "first", after_steps=10)
    assert stop_and_resume(dataset, tmp_path / "run", after_steps=after_steps) == undisturbed
