"""A plan without training, and a training with that plan."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import medseg
from medseg.cli.app import run
from medseg.core.errors import MedsegError
from medseg.core.plan import Plan
from medseg.planning.explain import explain
from medseg.workflows.plan import settled
from medseg.workflows.run import is_spacious
from tests.models import small_plan
from tests.phantoms import write_msd_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_msd_dataset(tmp_path_factory.mktemp("data"))


def test_a_plan_is_written_and_trained_with(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    small = ["base_features=4", "plan.training.steps_per_epoch=2", "plan.training.batch_size=1"]
    told = medseg.plan(data, file, set=small, device="cpu")
    made = Plan.from_json(file.read_text())
    assert told["plan"] == json.loads(file.read_text())
    assert made.training.batch_size == 1
    assert {"configuration", "patch size", "mirror axes", "not 2d"} <= {
        row["choice"] for row in told["rows"]
    }
    # Edited by hand, as a person would.
    raw = json.loads(file.read_text())
    raw["patch_size"] = [16, 16, 16]
    raw["training"]["learning_rate"] = 0.005
    file.write_text(json.dumps(raw))
    medseg.train(data, tmp_path / "run", plan_file=str(file), epochs=1, device="cpu")
    used = Plan.from_json((tmp_path / "run" / "plan.json").read_text())
    assert used.patch_size == (16, 16, 16)
    assert used.training.learning_rate == 0.005
    assert used.reasons == made.reasons


def test_the_plan_of_train_is_that_of_plan(data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"set": ["base_features=4"], "device": "cpu", "fold": "all-data"}
    told = medseg.plan(data, **options)
    assert told["plan"]["labels"]["labels"][0]["name"] == "low"
    assert "file" not in told
    again = medseg.plan(data, **options)
    assert told == again


def test_a_processor_that_is_quicker_in_bf16_trains_in_it(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medseg.workflows.plan.bf16_pays", lambda device: True)
    options: dict[str, Any] = {"set": ["base_features=4"], "device": "cpu"}
    told = medseg.plan(data, **options)["plan"]
    assert told["training"]["precision"] == "bf16"
    assert "as fast as in fp32" in told["reasons"]["precision"]
    # Another processor must come to the same bits, and what is set is set.
    exact = medseg.plan(data, deterministic=True, **options)["plan"]
    assert exact["training"]["precision"] == "auto"
    options["set"] = [*options["set"], "plan.training.precision=fp32"]
    stated = medseg.plan(data, **options)["plan"]
    assert stated["training"]["precision"] == "fp32"
    assert "precision" not in stated["reasons"]


def test_a_short_budget_takes_the_quicker_memory_format(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "medseg.training.budget.measure_step",
        lambda plan, *_, **__: 0.1 if plan.training.memory_format == "channels_last" else 0.2,
    )
    options: dict[str, Any] = {"device": "cpu", "budget": "5min"}
    told = medseg.plan(data, **options)["plan"]
    assert told["training"]["memory_format"] == "channels_last"
    assert "2.00 times as fast" in told["reasons"]["memory_format"]
    # The same bits on every processor; and what is set is set.
    options["set"] = ["plan.training.memory_format=contiguous"]
    assert medseg.plan(data, **options)["plan"]["training"]["memory_format"] == "contiguous"
    options |= {"set": [], "deterministic": True}
    assert medseg.plan(data, **options)["plan"]["training"]["memory_format"] == "contiguous"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plan", "{file}"], "expected a plan for the dataset's channels: CT, got first"),
        (["--plan", "{file}", "--labels", "high"], "dataset's labels: high=2, got low=1, high=2"),
        (["--plan", "{data}/dataset.json"], "expected a valid plan"),
        (["--plan", "{data}/none.json"], "expected a plan (JSON)"),
        (["--target-memory", "lots"], "--target-memory: expected a size"),
        (["--configuration", "4d"], "configuration"),
        (["--preset", "huge"], "preset"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    file = tmp_path / "plan.json"
    file.write_text(small_plan().to_json())
    filled = [text.format(file=file, data=data) for text in arguments]
    code = run(["train", str(data), "--out", str(tmp_path / "run"), "--epochs", "1", *filled])
    assert code == 2
    said = " ".join(capfd.readouterr().err.split())
    assert words in said
    assert "Traceback" not in said


def test_the_command_prints_reasons_beside_choices(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    assert run(["plan", str(data), "--out", str(out), "--explain", "--device", "cpu"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "why" in said
    assert "patch size" in said
    assert out.is_file()
    assert run(["plan", str(data), "--json", "--device", "cpu", "--target-memory", "1GB"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "fits into 1.0 GB" in told["plan"]["reasons"]["patch_size"]


def test_every_plan_can_be_explained() -> None:
    rows = {row.choice: row for row in explain(small_plan())}
    assert rows["patch size"].value == "16 x 12 x 8"
    assert rows["patch size"].reason == ""
    assert "not 2d" not in rows
    noted = small_plan().model_copy(update={"reasons": {"patch_size": "a", "own": "b"}})
    rows = {row.choice: row for row in explain(noted)}
    assert (rows["patch size"].reason, rows["own"].reason) == ("a", "b")


def test_presets_say_network_and_memory(data: Path) -> None:
    small = medseg.plan(data, preset="small", device="cpu", set=["base_features=4"])
    assert small["plan"]["network"]["name"] == "unet"
    assert "4.0 GB" in small["plan"]["reasons"]["patch_size"]
    with pytest.raises(MedsegError, match="target-memory"):
        medseg.plan(data, preset="small", target_memory="1MB", device="cpu")


@pytest.mark.parametrize(
    ("asked", "free", "spacious"),
    [
        ({}, 10**12, True),
        ({}, 10**6, False),
        ({"target_memory": "8GB"}, 10**12, False),
        ({"preset": "small"}, 10**12, False),
    ],
)
def test_memory_is_spent_for_speed_where_none_was_named_and_enough_is_free(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
    free: int,
    spacious: bool,
) -> None:
    import psutil

    def quiet(phase: str, done: int, total: int, note: str) -> None:
        pass

    made = settled(data, Path(), {**asked, "device": "cpu"}, progress=quiet, stop=lambda: False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert is_spacious(made, small_plan()) is spacious
