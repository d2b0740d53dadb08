"""A batch that is killed at any moment loses nothing, and leaves nothing half done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import small_plan, write_random_package
from tests.phantoms import blobs, oblique_affine, write_nifti

CASES = 30


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A package and a folder of scans, no two of one size."""
    folder = tmp_path_factory.mktemp("batch")
    for number in range(CASES):
        image, _ = blobs((18 + number % 7, 14, 10 + number % 5), seed=number)
        write_nifti(folder / "in" / f"c{number:02d}.nii.gz", image, oblique_affine())
    return write_random_package(folder / "model", small_plan()), folder / "in"


def check(
    batch: tuple[Path, Path], out: Path, repository: Path, *, rounds: int, shards: int
) -> None:
    command = ["-m", "tests.batch.killing", *map(str, batch), str(out), str(rounds), str(shards)]
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    assert len(reports) == rounds
    cases = {f"c{number:02d}": ["done"] for number in range(CASES)}
    for report in reports:
        # Killed, or done by then.
        assert report["code"] in (-9, 0)
        assert report["wrong"] == []
        assert report["others"] == [0] * (shards - 1)
        assert report["again"] == [0] * shards
        assert report["equal"]
        assert report["ledger"] == cases
        assert report["unfinished"] == []
    # The moments lie between the first mask and the last, most of them.
    assert any(0 < report["there"] < CASES for report in reports)


def test_killed_three_times(batch: tuple[Path, Path], tmp_path: Path, repository: Path) -> None:
    check(batch, tmp_path, repository, rounds=3, shards=1)


def test_two_shards_at_once(batch: tuple[Path, Path], tmp_path: Path, repository: Path) -> None:
    check(batch, tmp_path, repository, rounds=1, shards=2)


@pytest.mark.acceptance
@pytest.mark.parametrize("shards", [1, 2])
def test_killed_twenty_times(
    batch: tuple[Path, Path], tmp_path: Path, repository: Path, shards: int
) -> None:
    check(batch, tmp_path, repository, rounds=20, shards=shards)
