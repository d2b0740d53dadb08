"""Cases that were read once are there once more, unless their files have changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from medseg.datasets.dataset import Case
from medseg.datasets.kept import KeptCases
from medseg.datasets.open import open_dataset
from medseg.datasets.reading import read_case_image, read_case_mask
from tests.phantoms import write_msd_dataset


@pytest.fixture
def cases(tmp_path: Path) -> tuple[Case, ...]:
    return open_dataset(write_msd_dataset(tmp_path, cases=2)).cases


def read_and_keep(case: Case, kept: KeptCases) -> int:
    """Bytes of the case."""
    scan, (mask, _) = read_case_image(case), read_case_mask(case)
    voxels = scan.voxels()
    kept.keep(case, scan, voxels, mask)
    return int(voxels.nbytes + mask.nbytes)


def test_a_case_is_taken_once(cases: tuple[Case, ...]) -> None:
    kept = KeptCases()
    nbytes = read_and_keep(cases[0], kept)
    assert kept.look_up(cases[1]) is None
    assert kept.look_up(cases[0]) is not None
    assert kept.nbytes == nbytes
    case = kept.take(cases[0])
    assert case is not None
    fresh, (mask, grid) = read_case_image(cases[0]), read_case_mask(cases[0])
    np.testing.assert_array_equal(case.scan.voxels(), fresh.voxels())
    np.testing.assert_array_equal(case.mask, mask)
    assert case.scan.geometry.difference(grid.geometry) is None
    np.testing.assert_array_equal(case.scan.read_slab(1, 3), fresh.read_slab(1, 3))
    assert kept.take(cases[0]) is None
    assert kept.nbytes == 0


@pytest.mark.parametrize("which", ["image", "mask"])
def test_a_file_that_changed_is_not_kept(cases: tuple[Case, ...], which: str) -> None:
    kept, case = KeptCases(), cases[0]
    read_and_keep(case, kept)
    file = case.images[0] if which == "image" else case.masks[0]
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert kept.look_up(case) is None
    assert kept.take(case) is None
    assert kept.nbytes == 0
    read_and_keep(case, kept)
    file.unlink()
    assert kept.take(case) is None


def test_no_more_is_kept_than_fits(cases: tuple[Case, ...]) -> None:
    nbytes = read_and_keep(cases[0], KeptCases())
    kept = KeptCases(most_bytes=nbytes)
    for case in cases:
        read_and_keep(case, kept)
    assert kept.nbytes == nbytes
    assert kept.look_up(cases[1]) is None
    kept.clear()
    assert kept.nbytes == 0
    assert kept.look_up(cases[0]) is None
