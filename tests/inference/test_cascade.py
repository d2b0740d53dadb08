"""Labels of an earlier stage as channels."""

from __future__ import annotations

import torch
from torch.nn.functional import one_hot

from medseg.inference.cascade import OneHotVolume
from medseg.inference.volume import TensorVolume


def test_a_box_of_channels_equals_the_whole_one_hot() -> None:
    voxels = torch.randn(2, 7, 5, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(7 * 5 * 6).reshape(7, 5, 6) % 5  # 4 stands in no channel
    for kind in (torch.uint8, torch.int32):
        volume = OneHotVolume(TensorVolume(voxels), labels.to(kind), 3)
        assert volume.shape == (5, 7, 5, 6)
        hot = one_hot(labels, 5).permute(3, 0, 1, 2)[1:4].float()
        box = (slice(1, 5), slice(0, 5), slice(2, 3))
        assert torch.equal(volume.read(box), torch.cat([voxels, hot])[:, *box])
