from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest

from medseg.cli.app import run


def test_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["numpy"] == version("numpy")
    assert facts["devices"]["cpu"]["cores"] >= 1
    assert 0 < facts["memory_gib"]["free"] <= facts["memory_gib"]["total"]
    assert facts["backends"]["torch eager"] == "ready"


def test_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    assert f"monai                    {version('monai')}" in capsys.readouterr().out


def test_a_missing_package_is_told_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_nibabel(name: str) -> Any:
        if name == "nibabel":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("medseg.workflows.doctor.version", without_nibabel)
    assert run(["doctor", "--json"]) == 2
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["nibabel"] is None
    assert facts["missing"]["nibabel"]["cure"] == "pip install nibabel"
