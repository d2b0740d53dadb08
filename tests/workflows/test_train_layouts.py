"""Training takes other layouts than MSD from the command to the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.core.errors import DatasetError
from medseg.workflows.convert import convert
from medseg.workflows.train import train
from tests.phantoms import write_msd_dataset


def test_a_channel_per_file(tmp_path: Path) -> None:
    source = write_msd_dataset(
        tmp_path / "msd", cases=6, shape=(14, 12, 10), splits=False, channels=("T1", "FLAIR")
    )
    convert(source, tmp_path / "nnunet", to="nnunet")
    convert(tmp_path / "nnunet", tmp_path / "table", to="table")
    done = train(tmp_path / "table", tmp_path / "run", epochs=1, fold="0", device="cpu",
                 config="demo")  # fmt: skip
    assert done["metrics"]["mean"]["dice"] >= 0
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert [channel["name"] for channel in plan["channels"]] == ["T1", "FLAIR"]
    for path in (tmp_path / "run" / "validation").glob("case_*.json"):
        assert len(json.loads(path.read_text())["input_sha256"]) == 2


def test_regions_without_an_order_are_refused_before_anything_runs(tmp_path: Path) -> None:
    source = write_msd_dataset(tmp_path / "msd", cases=3, shape=(9, 7, 5))
    convert(source, tmp_path / "nnunet", to="nnunet")
    path = tmp_path / "nnunet" / "dataset.json"
    raw = json.loads(path.read_text())
    raw["labels"] = {"background": 0, "whole": [1, 2], "core": [2]}
    path.write_text(json.dumps(raw))
    with pytest.raises(DatasetError, match="regions_class_order"):
        train(tmp_path / "nnunet", tmp_path / "run", epochs=1)
    assert not (tmp_path / "run").exists()
