"""Damaged files end in a scan or in one error of ours: no crash, no hang, no flood of memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.io.fuzz_worker import LIMIT_BYTES

_ERRORS = {"scan", "FileError", "GeometryError"}
_HANG_S = 5.0


def _read_damaged(folder: Path, first: int, last: int, root: Path) -> dict[str, Any]:
    """A crash in C++ cannot be caught, so all reading is done by another process."""
    command = [sys.executable, "-W", "error", "-m", "tests.io.fuzz_worker"]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(folder), str(first), str(last)],
        cwd=root, env={**os.environ, **threads}, capture_output=True, text=True, check=False,
        timeout=30 + (last - first) / 10,
    )  # fmt: skip
    assert done.returncode == 0, f"at {done.stderr[-1500:]}"
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _judge(report: dict[str, Any], count: int) -> None:
    assert set(report["ended"]) <= _ERRORS
    assert sum(report["ended"].values()) == count
    # Damage that is always refused at the first glance would test little.
    assert report["ended"]["scan"] > count / 20
    assert report["slowest_s"] < _HANG_S
    assert report["peak_bytes"] < LIMIT_BYTES


def test_300_damaged_files(tmp_path: Path, repository: Path) -> None:
    _judge(_read_damaged(tmp_path, 0, 300, repository), 300)


@pytest.mark.acceptance
def test_5000_damaged_files(tmp_path: Path, repository: Path) -> None:
    for first in range(0, 5000, 1000):
        _judge(_read_damaged(tmp_path, first, first + 1000, repository), 1000)
