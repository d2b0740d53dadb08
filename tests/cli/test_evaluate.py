"""``medseg evaluate``: exit codes, the list of cases, what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from medseg.cli.evaluate import evaluate_command, read_case_ids
from medseg.core.errors import FileError, InputError
from tests.phantoms import write_msd_dataset

app = typer.Typer()
app.command()(evaluate_command)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """Perfect predictions of a dataset of three cases, of which the last is missing."""
    dataset = write_msd_dataset(tmp_path / "data", cases=3)
    predictions = tmp_path / "pred"
    predictions.mkdir()
    for number in range(2):
        name = f"case_{number:03d}.nii.gz"
        (predictions / name).write_bytes((dataset / "labelsTr" / name).read_bytes())
    return str(predictions), str(dataset / "labelsTr")


def test_json_and_the_code_for_partial_failure(folders: tuple[str, str], tmp_path: Path) -> None:
    arguments = [*folders, "--json", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3
    metrics = json.loads(result.stdout)
    assert metrics["missing"] == ["case_002"]
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert CliRunner().invoke(app, [*arguments, "--allow-missing"]).exit_code == 0


def test_table(folders: tuple[str, str], tmp_path: Path) -> None:
    chosen = tmp_path / "cases.txt"
    chosen.write_text("case_000\n\ncase_001\n")
    result = CliRunner().invoke(app, [*folders, "--cases", str(chosen)])
    assert result.exit_code == 0
    assert "high" in result.stdout
    assert "(1.000-1.000)" in result.stdout


def test_comparison_on_the_screen(folders: tuple[str, str], tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, [*folders, "--allow-missing", "--against", folders[0], "--second-reader", folders[1]]
    )
    assert result.exit_code == 0
    assert "pred - these predictions, on 2 cases" in result.stdout
    assert "reader" in result.stdout
    wrong = CliRunner().invoke(app, [*folders, "--resample", "linear"])
    assert wrong.exit_code != 0


def test_case_lists(tmp_path: Path) -> None:
    splits = tmp_path / "splits.json"
    splits.write_text(
        json.dumps([{"train": ["a"], "val": ["b"]}, {"train": [], "val": ["c", "d"]}])
    )
    assert read_case_ids(f"{splits}:1") == ["c", "d"]
    assert read_case_ids(str(splits)) == ["b"]
    with pytest.raises(InputError, match="2 folds"):
        read_case_ids(f"{splits}:2")
    plain = tmp_path / "with:colon.txt"
    plain.write_text(" a/b \n")
    assert read_case_ids(str(plain)) == ["a/b"]
    plain.write_text("\n")
    with pytest.raises(InputError, match="at least one"):
        read_case_ids(str(plain))
    with pytest.raises(FileError, match="No such file"):
        read_case_ids(str(tmp_path / "absent.txt"))
    splits.write_text("{")
    with pytest.raises(FileError, match="JSON"):
        read_case_ids(f"{splits}:0")
    splits.write_text('[{"train": []}]')
    with pytest.raises(FileError, match='"val"'):
        read_case_ids(f"{splits}:0")
