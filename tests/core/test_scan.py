"""Scans: lazy voxels, channels, and what does not fit together."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.core.errors import FileError, GeometryError
from medseg.core.geometry import Geometry
from medseg.core.scan import Scan
from tests.phantoms import lopsided_geometry, lopsided_volume

SHAPE = (11, 8, 6)


def test_voxels_are_read_when_asked_for_and_each_time() -> None:
    calls = []

    def load() -> np.ndarray:
        calls.append(1)
        return np.zeros((1, *SHAPE))

    scan = Scan(lopsided_geometry(SHAPE), ("0",), load)
    assert calls == []
    scan.voxels()
    scan.voxels()
    assert len(calls) == 2


def test_voxels_that_break_the_promise_are_an_error_with_the_source() -> None:
    scan = Scan(lopsided_geometry(SHAPE), ("0",), lambda: np.zeros((1, 2, 3, 4)), source="a.nii")
    with pytest.raises(FileError, match=r"a\.nii: expected voxels \(1, 11, 8, 6\), got"):
        scan.voxels()


def test_from_array_takes_a_volume_with_or_without_channels() -> None:
    voxels, affine = lopsided_volume(SHAPE)
    geometry = Geometry(SHAPE, affine)
    assert Scan.from_array(voxels, geometry).voxels().shape == (1, *SHAPE)
    several = Scan.from_array(np.stack([voxels, voxels]), geometry)
    assert several.channels == ("0", "1")
    assert np.array_equal(several.voxels()[1], voxels)


def test_from_channels_joins_in_order() -> None:
    voxels, affine = lopsided_volume(SHAPE)
    geometry = Geometry(SHAPE, affine)
    parts = {"T1": Scan.from_array(voxels, geometry), "T2": Scan.from_array(-voxels, geometry)}
    joined = Scan.from_channels(parts)
    assert joined.channels == ("T1", "T2")
    assert np.array_equal(joined.voxels(), np.stack([voxels, -voxels]))


def test_from_channels_on_other_grids_is_an_error() -> None:
    voxels, affine = lopsided_volume(SHAPE)
    moved = affine.copy()
    moved[2, 3] += 1.0
    parts = {
        "T1": Scan.from_array(voxels, Geometry(SHAPE, affine)),
        "T2": Scan.from_array(voxels, Geometry(SHAPE, moved)),
    }
    with pytest.raises(GeometryError, match="'T2' on the grid of 'T1'"):
        Scan.from_channels(parts)


def test_from_channels_of_a_scan_with_two_channels_is_an_error() -> None:
    voxels, affine = lopsided_volume(SHAPE)
    geometry = Geometry(SHAPE, affine)
    double = Scan.from_array(np.stack([voxels, voxels]), geometry)
    with pytest.raises(FileError, match="one channel per file"):
        Scan.from_channels({"a": double})
