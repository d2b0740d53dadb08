"""Several threads read files some of which crash their reader."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medseg.core.errors import FileError
from medseg.io import isolated
from medseg.io.formats import read_mask, read_scan
from medseg.io.guarded import GuardedReader
from tests.io.faulty_reader import worker_with_faults
from tests.io.test_isolated import workers
from tests.phantoms import lopsided_volume, oblique_affine, write_nifti


def nrrd(path: Path, values: np.ndarray) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(values.T)), str(path))
    return path


def test_crashes_are_errors_of_their_files_and_threads_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "_START", worker_with_faults(scan="read_or_fail"))
    names = ["case_1", "abort", "case_2", "segfault", "case_3"]
    paths = [
        nrrd(tmp_path / f"{name}.nrrd", lopsided_volume(seed=n)[0]) for n, name in enumerate(names)
    ]
    seen: dict[str, object] = {}
    with ThreadPoolExecutor(2) as pool, GuardedReader() as reader:
        for name, job in [(p.stem, pool.submit(reader.scan, p)) for p in paths]:
            try:
                seen[name] = job.result().voxels()[0]
            except FileError as error:
                seen[name] = str(error)
        assert 1 <= len(workers()) <= 2
    assert workers() == []
    for number, name in enumerate(names):
        if name.startswith("case"):
            np.testing.assert_array_equal(seen[name], lopsided_volume(seed=number)[0])
        else:
            assert "crashed on this file" in str(seen[name])


def test_masks_are_equal_to_those_read_here(tmp_path: Path) -> None:
    values = (lopsided_volume()[0] % 3).astype(np.uint8)
    path = nrrd(tmp_path / "m.nrrd", values)
    with GuardedReader() as reader:
        there, grid = reader.mask(path)
        here, scan = read_mask(path)
        assert there.dtype == here.dtype
        np.testing.assert_array_equal(there, here)
        assert grid.geometry == scan.geometry


def test_nifti_stays_here_and_unknown_files_are_told(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", lopsided_volume()[0], oblique_affine())
    (tmp_path / "b.nrrd").write_bytes(b"nothing")
    with GuardedReader() as reader:
        assert reader.scan(path).geometry == read_scan(path).geometry
        with pytest.raises(FileError, match="something else"):
            reader.scan(tmp_path / "b.nrrd")
        assert workers() == []
