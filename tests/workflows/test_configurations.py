"""Several configurations in one run: each judged on the same cases, one kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import medseg
from medseg.cli.app import run as command
from medseg.core.errors import Interrupted, SettingsError
from medseg.evaluation.best import Judged, choose_best
from medseg.package.package import load_package
from medseg.workflows import configurations
from medseg.workflows.make_set import make_set
from tests.phantoms import write_msd_dataset

SMALL: dict[str, Any] = {
    "epochs": 1, "base_features": 4, "inner_share": 0.3, "seed": 1, "device": "cpu",
    "plan": {"training": {"steps_per_epoch": 2}},
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_msd_dataset(tmp_path_factory.mktemp("data") / "msd", cases=6)


@pytest.fixture(scope="module")
def compared(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    medseg.train(dataset, out, configuration="2d,3d", **SMALL)
    return out


def weights(run: Path) -> bytes:
    return (run / "model" / "weights.safetensors").read_bytes()


def table_of(run: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((run / "configurations.json").read_text())
    return table


def test_each_is_what_it_is_alone_and_judged_on_the_same_cases(
    dataset: Path, compared: Path, tmp_path: Path
) -> None:
    medseg.train(dataset, tmp_path / "alone", configuration="3d", **SMALL)
    assert weights(compared / "3d") == weights(tmp_path / "alone")
    table = table_of(compared)
    assert [row["name"] for row in table["models"]] == ["2d", "3d", "2d+3d"]
    kept = json.loads((dataset / "splits.json").read_text())[0]["val"]
    assert table["cases"] == len(kept)
    # The figures are those of the masks that lie there, by the command that evaluates.
    masks = {name: compared / name / "validation" for name in ("2d", "3d")}
    masks["2d+3d"] = compared / "pairs" / "2d+3d" / "validation"
    for row in table["models"]:
        again = medseg.evaluate(masks[row["name"]], dataset / "labelsTr", cases=kept)
        assert row["dice"] == pytest.approx(again["mean"]["dice"])
    page = (compared / "report.html").read_text()
    assert all(row["name"] in page for row in table["models"])
    assert table["reason"] in page
    if "+" not in table["taken"]:
        taken, model = (load_package(compared / place / "model") for place in (table["taken"], "."))
        assert model.sha256 == taken.sha256


def test_the_mean_of_two_is_what_predict_gives_of_the_set(
    dataset: Path, compared: Path, tmp_path: Path
) -> None:
    members = [compared / "2d", compared / "3d"]
    make_set(tmp_path / "set", members, combine="mean")
    model = medseg.load_model(tmp_path / "set", "cpu", backend="torch")
    for path in (compared / "pairs" / "2d+3d" / "validation").glob("*.nii.gz"):
        found = model.predict(dataset / "imagesTr" / path.name).labels
        assert np.array_equal(np.asarray(nib.load(path).dataobj), found)


def test_the_mean_is_kept_where_it_is_clearly_best(
    dataset: Path, compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pair_is_best(models: list[Judged]) -> tuple[str, Any]:
        return models[-1].name, choose_best(models)[1]

    monkeypatch.setattr(configurations, "choose_best", pair_is_best)
    before = (compared / "2d" / "model" / "weights.safetensors").stat().st_mtime_ns
    masks = [path.stat().st_mtime_ns for path in sorted((compared / "pairs").rglob("*.nii.gz"))]
    result = medseg.train(dataset, compared, configuration="2d,3d", resume=True, **SMALL)
    # Done already: neither trained nor segmented again.
    assert (compared / "2d" / "model" / "weights.safetensors").stat().st_mtime_ns == before
    again = [path.stat().st_mtime_ns for path in sorted((compared / "pairs").rglob("*.nii.gz"))]
    assert masks == again
    assert result["configurations"]["taken"] == "2d+3d"
    assert result["metrics"]["mean"]["dice"] == result["configurations"]["models"][2]["dice"]
    model = medseg.load_model(compared)
    image = next((dataset / "imagesTr").glob("*.nii.gz"))
    assert model.predict(image).provenance["members"] == 2
    assert not [path for path in compared.iterdir() if path.name.startswith(".medseg")]


def test_it_goes_on_in_the_second(dataset: Path, compared: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def stop() -> bool:
        return any(note.startswith("3d: step") for note in seen)

    def progress(phase: str, done: int, total: int, note: str) -> None:
        seen.append(note)

    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        medseg.train(
            dataset, out, configuration="2d,3d", progress=progress, stop=stop, **SMALL
        )  # fmt: skip
    assert (out / "2d" / "outcome.json").is_file()
    assert not (out / "3d" / "outcome.json").exists()
    with pytest.raises(SettingsError, match="Add --resume"):
        medseg.train(dataset, out, configuration="2d,3d", **SMALL)
    with pytest.raises(SettingsError, match="other configuration"):
        medseg.train(dataset, out, configuration="3d,2d", resume=True, **SMALL)
    seen.clear()
    medseg.train(dataset, out, configuration="2d,3d", resume=True, progress=progress, **SMALL)
    assert not [note for note in seen if note.startswith("2d: step")]
    for name in ("2d", "3d"):
        assert weights(out / name) == weights(compared / name)


def test_all_folds_and_a_shared_budget(tmp_path: Path) -> None:
    data = write_msd_dataset(tmp_path / "data", cases=3, splits=False)
    settings = {key: value for key, value in SMALL.items() if key != "epochs"}
    out = tmp_path / "run"
    result = medseg.train(
        data, out, configuration=["2d", "3d"], fold="all", budget="8s", **settings
    )
    table = result["configurations"]
    assert table["cases"] == 3
    shares = [json.loads((out / n / "run.json").read_text())["settings"] for n in ("2d", "3d")]
    assert [one["budget_s"] for one in shares] == [3.6, 3.6]
    # What is left is too little for the mean of two on three folds, and that is said.
    judged = [row["name"] for row in table["models"]]
    assert judged == ["2d", "3d"]
    assert table["notes"] == ["2d+3d was left out: the budget does not reach for its cases."]
    image = next((data / "imagesTr").glob("*.nii.gz"))
    assert medseg.load_model(out).predict(image).provenance["members"] == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"configuration": "2d,4d"}, "auto, best, cascade, or one or several of 2d, 3d, 3d-low"),
        ({"configuration": "2d,2d"}, "auto, best, cascade, or one or several of"),
        ({"configuration": "auto,2d"}, "auto, best, cascade, or one or several of"),
        ({"fold": "all-data"}, "validation cases to compare by, got --fold all-data"),
        ({"plan_file": "plan.json"}, "--plan plan.json: expected one configuration"),
        ({"start_from": "model"}, "--from model: expected one configuration"),
        # Told before the 3D network has trained for hours.
        ({"plan": {"patch_size": [16, 16, 16]}}, r"\(configuration 2d\)"),
    ],
)
def test_what_cannot_be_compared_is_said(
    dataset: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        medseg.train(
            dataset, tmp_path / "run", **{**SMALL, "configuration": "3d,2d", **settings}
        )  # fmt: skip
    assert not (tmp_path / "run" / "3d").exists()


def test_pictures_have_one_sensible_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_msd_dataset(tmp_path / "data", cases=4, shape=(32, 24, 1))
    arguments = [str(data), "--out", str(tmp_path / "run"), "--configuration", "best"]
    small = ["base_features=4", "plan.training.steps_per_epoch=2"]
    for pair in small:
        arguments += ["--set", pair]
    assert command(["train", *arguments, "--epochs", "1", "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["configurations"]
    assert (told["taken"], [row["name"] for row in told["models"]]) == ("2d", ["2d"])
    with pytest.raises(SettingsError, match=r"single slices .*\(configuration 3d\)|3d.*2d"):
        medseg.train(data, tmp_path / "other", configuration="2d,3d", **SMALL)
