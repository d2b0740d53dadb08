"""``medseg import-nnunet``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.cli.app import run
from tests.nnunet_models import write_nnunet_model


def test_import_nnunet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_nnunet_model(tmp_path / "model", folds=("0", "1", "all"))
    command = ["import-nnunet", str(folder), "--out", str(tmp_path / "package")]
    assert run([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["members"], told["labels"]) == (2, ["low", "high"])
    assert run([*command, "--folds", "all"]) == 0
    assert "one fold, channels T1, T2, labels low, high" in capsys.readouterr().out
    for path in (folder, tmp_path / "package"):
        assert run(["info", str(path)]) == 0
        assert "nnU-Net v2" in capsys.readouterr().out


def test_what_cannot_be_imported_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_nnunet_model(tmp_path / "model")
    for changes in (["--folds", "3"], ["--checkpoint", "best"]):
        assert run(["import-nnunet", str(folder), "--out", str(tmp_path / "p"), *changes]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "--checkpoint" in told
    assert run(["import-nnunet", str(tmp_path), "--out", str(tmp_path / "p")]) == 2
    assert "plans.json" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
