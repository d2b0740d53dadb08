"""Damaged headers and files end in a scan or in an error of ours, never in anything else."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from medseg.core.errors import MedsegError
from medseg.io.dicom import find_series, read_series
from tests.dicom_phantoms import Series, random_voxels

ROUNDS = 25


def sources(folder: Path) -> list[Path]:
    """One file of each kind."""
    small = random_voxels((9, 7, 3))
    found = []
    for number, syntax in enumerate(("implicit", "explicit", "big endian", "deflated", "RLE")):
        found.append(next(Series(small, syntax=syntax).write(folder / str(number)).iterdir()))
    found.append(Series(small).write_enhanced(folder / "e" / "explicit.dcm"))
    found.append(Series(small, syntax="implicit").write_enhanced(folder / "e" / "implicit.dcm"))
    with zipfile.ZipFile(folder / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (folder / "1").iterdir():
            archive.write(path, path.name)
    return [*found, folder / "z.zip"]


def mutated(data: bytes, chance: np.random.Generator) -> bytes:
    """Bytes changed, set, cut out; most of it in the header."""
    raw = bytearray(data)
    for _ in range(int(chance.choice([1, 2, 5, 20]))):
        at = int(chance.integers(0, max(1, min(len(raw), int(chance.choice([700, 2000, 10**6]))))))
        kind = int(chance.integers(0, 4))
        if kind == 0:
            raw[at : at + 1] = chance.bytes(1)
        elif kind == 1:
            raw[at : at + 4] = b"\xff\xff\xff\x7f"
        elif kind == 2:
            raw[at : at + 4] = chance.bytes(4)
        else:
            del raw[at : at + int(chance.integers(1, 300))]
    return bytes(raw)


def read_all(path: Path) -> int:
    """Read what there is; how many scans came of it."""
    count = 0
    for info in find_series(path):
        try:
            voxels = read_series(info, accept_gaps=True).voxels()
        except MedsegError:
            continue
        assert voxels.ndim == 4
        count += 1
    return count


def hunt(folder: Path, *, rounds: int, seed: int) -> tuple[int, int]:
    """Mutate each source so many times; how many scans and how many errors came of it."""
    chance = np.random.default_rng(seed)
    scans = errors = 0
    with warnings.catch_warnings():
        # pydicom tells of what it mends.
        warnings.simplefilter("ignore")
        for source in sources(folder):
            data = source.read_bytes()
            assert read_all(source) == 1
            for _ in range(rounds):
                victim = folder / f"victim{source.suffix}"
                victim.write_bytes(mutated(data, chance))
                try:
                    scans += read_all(victim)
                except MedsegError:
                    errors += 1
    return scans, errors


def test_mutated_files(tmp_path: Path) -> None:
    scans, errors = hunt(tmp_path, rounds=ROUNDS, seed=0)
    assert scans > 0
    assert errors > 0


@pytest.mark.acceptance
def test_many_mutated_files(tmp_path: Path) -> None:
    hunt(tmp_path, rounds=400, seed=1)
