"""Volumes in memory and on the disk give the same boxes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medseg.inference.volume import DiskVolume, TensorVolume

SHAPE = (2, 11, 8, 6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_disk_gives_what_memory_gives(tmp_path: Path, axis: int) -> None:
    voxels = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    in_memory = TensorVolume(voxels)
    with DiskVolume(tmp_path, SHAPE, axis=axis) as on_disk:
        side = SHAPE[axis + 1]
        for start in reversed(range(0, side, 4)):
            depth = min(4, side - start)
            on_disk.write(start, voxels.narrow(axis + 1, start, depth))
        assert on_disk.shape == in_memory.shape == SHAPE
        box = (slice(2, 9), slice(0, 8), slice(3, 5))
        expected = voxels[:, 2:9, 0:8, 3:5]
        for volume in (in_memory, on_disk):
            seen = volume.read(box)
            assert seen.dtype == torch.float32
            assert torch.equal(seen, expected)


def test_other_numbers_become_float32() -> None:
    seen = TensorVolume(torch.ones(SHAPE, dtype=torch.float16)).read((slice(0, 1),) * 3)
    assert seen.dtype == torch.float32
