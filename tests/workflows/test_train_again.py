"""Runs that go on: made longer, begun with another model, done already; and their page."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medseg
from medseg.core.errors import SettingsError
from medseg.package.package import load_package
from medseg.workflows.api import package_of
from tests.nnunet_models import write_nnunet_model
from tests.phantoms import write_msd_dataset
from tests.workflows.test_train import SMALL, weights


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_msd_dataset(tmp_path_factory.mktemp("data") / "msd", cases=8)


def train(dataset: Path, out: Path, **changes: Any) -> dict[str, Any]:
    result: dict[str, Any] = medseg.train(dataset, out, **{**SMALL, "seed": 1, **changes})
    return result


def test_a_run_that_is_done_can_be_made_longer_and_is_not_done_twice(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    first = train(dataset, run)
    before, stamp = weights(run), (run / "model" / "weights.safetensors").stat().st_mtime_ns
    again = train(dataset, run, resume=True)
    assert (run / "model" / "weights.safetensors").stat().st_mtime_ns == stamp
    assert again["metrics"] == first["metrics"]
    with caplog.at_level(logging.INFO, logger="medseg"):
        longer = train(dataset, run, resume=True, epochs=3, checkpoint_every="10min")
    assert "made longer" in caplog.text
    assert (first["steps"], longer["steps"]) == (4, 6)
    assert weights(run) != before
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]
    with pytest.raises(SettingsError, match="other epochs"):
        train(dataset, run, resume=True, epochs=2)
    with pytest.raises(SettingsError, match="budget"):
        train(dataset, run, resume=True, epochs=None, budget="1min")


def test_the_page_of_a_run_says_what_happened(dataset: Path, tmp_path: Path) -> None:
    result = train(dataset, tmp_path / "run")
    page = Path(result["report"]).read_text(encoding="utf-8")
    dice = result["metrics"]["mean"]["dice"]
    assert f"Mean Dice of validation {dice:.4f}" in page
    for text in ("Loss", "Norm of the gradient", "Worst", "Best", "low", "high", "patch_size"):
        assert text in page
    # What takes part in no request of a browser: the page stands for itself.
    assert "http" not in page.replace("http-equiv", "")
    facts = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert facts["memory"]["process_mb"] > 50


def test_it_begins_with_the_weights_of_another_model(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(dataset, tmp_path / "first", labels="low")
    source = load_package(tmp_path / "first" / "model")
    with caplog.at_level(logging.INFO, logger="medseg"):
        # No step changes anything at this rate: what comes out is what was taken.
        train(
            dataset, tmp_path / "second", start_from=str(tmp_path / "first"), epochs=1,
            plan={"training": {"steps_per_epoch": 2, "learning_rate": 1e-30, "weight_decay": 0}},
        )  # fmt: skip
    assert "the heads of low go on; those of high are new" in caplog.text
    made = load_package(tmp_path / "second" / "model")
    assert made.model.training["begun_with"] == source.sha256
    assert made.plan.labels.names == ("low", "high")
    assert made.plan.network.features == source.plan.network.features
    (old,), (new,) = source.members, made.members
    for name, value in old.items():
        expected = value if not name.startswith("heads.") else value[:2]
        found = new[name] if not name.startswith("heads.") else new[name][:2]
        assert float((expected - found).abs().max()) < 1e-6


def test_it_begins_with_a_model_of_nnunet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Two channels, as the model has; one label of its two, and a new one.
    data = write_msd_dataset(tmp_path / "data", cases=5, channels=("T1", "T2"))
    model = write_nnunet_model(
        tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", balanced=True,
        setup_changes={"patch_size": [16, 24, 16]},
    )  # fmt: skip
    with caplog.at_level(logging.INFO, logger="medseg"):
        medseg.train(
            data, tmp_path / "run", start_from=str(model), labels="high,tiny=1", epochs=1, seed=1,
            plan={"training": {"steps_per_epoch": 2}}, fold="all-data",
        )  # fmt: skip
    assert "the heads of high go on; those of tiny are new" in caplog.text
    assert "layers of other shapes" not in caplog.text
    source, made = package_of(model).plan, load_package(tmp_path / "run" / "model").plan
    assert made.labels.names == ("high", "tiny")
    for key in ("spacing_mm", "patch_size", "orientation", "axis_order", "crop", "resampling"):
        assert getattr(made, key) == getattr(source, key)
    image = next((data / "imagesTr").glob("*.nii.gz"))
    mask = medseg.load_model(tmp_path / "run").predict(image)
    assert set(np.unique(mask.labels)) <= {0, 1, 2}


def test_what_one_cannot_begin_with_is_said(dataset: Path, tmp_path: Path) -> None:
    flat = write_msd_dataset(tmp_path / "flat", cases=5, shape=(32, 24, 1))
    train(dataset, tmp_path / "first", epochs=1)
    with pytest.raises(SettingsError, match="2D model, as the dataset is"):
        medseg.train(flat, tmp_path / "run", start_from=str(tmp_path / "first"), epochs=1)
