"""A cascade's second stage sees what its first stage found, one channel a label."""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.inference.volume import Box, Volume


class OneHotVolume:
    """A :class:`Volume` with the labels of an earlier stage as channels after its own.

    Labels are kept as numbers; channels are made for the box that is read alone.

    Args:
        volume: (C, I, J, K).
        labels: (I, J, K) whole numbers; others than 1 to ``count`` stand in no channel.
        count: How many labels there are.
    """

    def __init__(self, volume: Volume, labels: Tensor, count: int) -> None:
        self._volume, self._labels = volume, labels
        self._numbers = torch.arange(1, count + 1, dtype=labels.dtype)[:, None, None, None]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C + count, I, J, K)."""
        c, i, j, k = self._volume.shape
        return c + len(self._numbers), i, j, k

    def read(self, box: Box) -> Tensor:
        """All channels of a box: the volume's, then 1 where each label is and 0 elsewhere."""
        hot = self._labels[box] == self._numbers
        return torch.cat([self._volume.read(box), hot.float()])
