"""What tiles are cut from: a volume in memory, or one on the disk that is above memory."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from medseg.io.scratch import ScratchArray

Box = tuple[slice, slice, slice]


class Volume(Protocol):
    """Voxels on the network's grid that are read a box at a time.

    Contract: ``read`` may be called from several threads; the same box gives the same values.
    """

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, I, J, K)."""
        ...

    def read(self, box: Box) -> Tensor:
        """All channels of a box.

        Args:
            box: A slice along each of I, J, K: start and stop given, step 1, within the shape.

        Returns:
            (C, i, j, k) float32 on the CPU; not to be changed, it may be a view.
        """
        ...


class TensorVolume:
    """A :class:`Volume` in memory.

    Args:
        voxels: (C, I, J, K) float, on any device.
    """

    def __init__(self, voxels: Tensor) -> None:
        self._voxels = voxels

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, I, J, K)."""
        c, i, j, k = (int(side) for side in self._voxels.shape)
        return c, i, j, k

    def read(self, box: Box) -> Tensor:
        """All channels of a box; a view where the voxels are float32 on the CPU."""
        return self._voxels[:, *box].to("cpu", torch.float32)


class DiskVolume:
    """A :class:`Volume` in a scratch file: planes are written in any order, boxes are read.

    Args:
        folder: Where the file lies.
        shape: (C, I, J, K).
        axis: 0, 1 or 2: along which of I, J, K planes are written; tiles are read fastest in
            the order of this axis.

    Raises:
        OutputError: The folder has no room for it.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int, int], *, axis: int = 2) -> None:
        first, second = (other for other in (1, 2, 3) if other != axis + 1)
        order = (axis + 1, 0, first, second)
        self._array = ScratchArray(folder, shape, "float32", order=order)
        self.shape, self.axis = shape, axis

    def write(self, start: int, planes: Tensor) -> None:
        """Write planes of all channels, from index ``start`` along ``axis`` on.

        Args:
            start: The first plane.
            planes: (C, I, J, K), of any depth along ``axis`` and the full sides else.

        Raises:
            OutputError: The disk is full.
        """
        box = [slice(None)] * 4
        box[self.axis + 1] = slice(start, start + int(planes.shape[self.axis + 1]))
        self._array.write(tuple(box), planes.numpy())

    def read(self, box: Box) -> Tensor:
        """All channels of a box."""
        return torch.from_numpy(self._array.read((slice(None), *box)))

    def close(self) -> None:
        """Give the space on the disk back."""
        self._array.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
