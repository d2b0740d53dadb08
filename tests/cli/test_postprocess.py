"""``medseg postprocess`` and ``instances``: exit codes, what is printed, and odd masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.cli.app import run
from tests.phantoms import oblique_affine, write_nifti

SHAPE = (12, 9, 7)


def organ(value: int = 1, dtype: Any = np.uint8) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype)
    mask[2:7, 2:6, 1:5], mask[10, 7, 6] = value, value
    return mask


def one_voxel() -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[4, 3, 2] = 1
    return mask


GOOD = {
    "whole floats": organ(1, np.float32),
    "far apart": organ(60_000, np.uint16),
    "300 labels": (np.arange(12 * 9 * 7) % 301).reshape(SHAPE).astype(np.uint16),
    "empty": np.zeros(SHAPE, np.uint8),
    "one voxel": one_voxel(),
    "full": np.ones(SHAPE, np.uint8),
    "flat": organ()[:, :, 2:3],
    "a last axis of one": organ()[..., None],
}
BAD = {
    "halves": organ().astype(np.float32) / 2,
    "not a number": np.where(organ() > 0, np.nan, 0).astype(np.float32),
    "below 0": -organ(1, np.int16),
    "four axes": np.stack([organ(), organ()], axis=-1),
}
COMMANDS = (
    ["postprocess", "--steps", "largest:*; min-volume:*=2mm3; fill-holes:*; open:*=1mm; "
     "close:*=1mm; smooth:*=1mm; majority:*=2mm; largest:1"],
    ["instances"],
    ["instances", "--split", "components"],
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", GOOD)
def test_odd_masks_are_done(
    name: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = GOOD[name]
    source = write_nifti(tmp_path / "in" / "case.nii.gz", mask, oblique_affine())
    assert run([command[0], str(source), "--out", str(tmp_path / "out"), *command[1:]]) == 0
    assert "Traceback" not in capsys.readouterr().err
    after = nib.load(tmp_path / "out" / "case.nii.gz")
    assert after.shape == mask.shape or after.shape == mask.shape[:3]
    np.testing.assert_allclose(after.affine, oblique_affine(), atol=1e-6)
    if name in ("empty", "full", "one voxel") and command[0] == "instances":
        np.testing.assert_array_equal(np.asarray(after.dataobj), mask)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", BAD)
def test_bad_masks_are_told(
    name: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_nifti(tmp_path / "in" / "case.nii.gz", BAD[name], oblique_affine())
    arguments = [command[0], str(source.parent), "--out", str(tmp_path / "out"), *command[1:]]
    assert run(arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ")
    assert "expected" in told
    assert "fault of medseg" not in told
    assert not list((tmp_path / "out").rglob("*.nii.gz"))
    # Beside a good mask it is one case that failed.
    write_nifti(tmp_path / "in" / "good.nii.gz", organ(), oblique_affine())
    assert run(arguments) == 3


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_nifti(tmp_path / "in" / "case.nii.gz", organ(), oblique_affine())
    arguments = ["postprocess", str(source), "--out", str(tmp_path / "out"), "--steps"]
    assert run([*arguments, "largest:1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["cases"]["case"]["steps"][0]["removed_mm3"] == {"1": 10.5}
    assert run([*arguments, "largest:1"]) == 0
    assert "1 masks, 0 failed" in capsys.readouterr().out
    for steps, word in (("shrink:1", "shrink"), ("largest:lung", "lung"), ("open:1", "radius_mm")):
        assert run([*arguments, steps]) == 2
        assert word in capsys.readouterr().err
    assert run(arguments[:-1]) == 2
    assert "--learn" in capsys.readouterr().err
    assert run(["instances", str(source), "--out", str(tmp_path / "i"), "--json"]) == 0
    assert [row["number"] for row in json.loads(capsys.readouterr().out)["rows"]] == [1, 2]
    for option in (["--split", "knife"], ["--neck", "2"], ["--min-volume", "much"],
                   ["--labels", "lung"]):  # fmt: skip
        assert run(["instances", str(source), "--out", str(tmp_path / "i"), *option]) == 2
        assert "error: " in capsys.readouterr().err


def test_learn_and_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for number in range(6):
        mask = np.roll(organ(), number % 2, axis=1)
        write_nifti(predictions / f"{number}.nii.gz", mask, oblique_affine())
        mask = mask.copy()
        mask[8:] = 0
        write_nifti(references / f"{number}.nii.gz", mask, oblique_affine())
    chain = tmp_path / "chain.json"
    learn = ["postprocess", str(predictions), "--learn", str(references), "--out", str(chain)]
    assert run(learn) == 0
    assert "largest:1: mean Dice" in capsys.readouterr().out
    assert run([*learn, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"][0]["step"] == "largest:1"
    out = ["--out", str(tmp_path / "out"), "--steps", str(chain)]
    assert run(["postprocess", str(predictions), *out]) == 0
    for number in range(6):
        after, expected = (
            np.asarray(nib.load(folder / f"{number}.nii.gz").dataobj)
            for folder in (tmp_path / "out", references)
        )
        np.testing.assert_array_equal(after, expected)
    assert run([*learn, "--steps", "largest:1"]) == 2
    assert "one of --steps and --learn" in capsys.readouterr().err
