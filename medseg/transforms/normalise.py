"""Intensities of one scan brought to the range that a network knows."""

from __future__ import annotations

import cc3d
import numpy as np
import torch
from torch import Tensor

from medseg.core.errors import InputError
from medseg.core.plan import ChannelPlan

Box = tuple[slice, slice, slice]


def normalise(voxels: Tensor, channel: ChannelPlan, *, region: Tensor | None = None) -> Tensor:
    """Normalise one channel (I, J, K) float32.

    Args:
        voxels: Of one channel.
        channel: Which way, and with which figures.
        region: (I, J, K) bool, from :func:`filled_nonzero`; ``zscore_mask`` needs it.

    Raises:
        InputError: ``rgb_01``, and voxels outside 0-255.

    Source: the schemes of nnU-Net (Isensee et al., Nature Methods 18, 2021, online methods).
    """
    kind = channel.normalisation
    if kind == "none":
        return voxels
    if kind == "ct":
        assert channel.mean is not None
        assert channel.std is not None
        clipped = voxels.clamp(channel.clip_low, channel.clip_high)
        return (clipped - channel.mean) / max(channel.std, 1e-6)
    if kind in ("rescale_01", "rgb_01"):
        return _to_unit(voxels, channel)
    if kind == "zscore":
        return _zscore(voxels, None)
    if kind == "zscore_nonzero":
        return _zscore(voxels, voxels != 0)
    assert region is not None
    return _zscore(voxels, region)


def _zscore(voxels: Tensor, inside: Tensor | None) -> Tensor:
    chosen = voxels if inside is None else voxels[inside]
    if chosen.numel() == 0:
        return voxels.clone()
    # Two passes in place: torch.std_mean takes ten times as long on a small scan, and twice on a
    # large one.
    numbers = chosen.to(torch.float64, copy=True)
    mean = numbers.mean()
    std = numbers.sub_(mean).square_().mean().sqrt()
    scaled = (voxels - mean.float()) / std.float().clamp(min=1e-6)
    return scaled if inside is None else torch.where(inside, scaled, voxels)


def _to_unit(voxels: Tensor, channel: ChannelPlan) -> Tensor:
    low, high = (float(value) for value in voxels.aminmax())
    if channel.normalisation == "rescale_01":
        return (voxels - low) / max(high - low, 1e-6)
    if low < 0 or high > 255:
        raise InputError(
            f"channel '{channel.name}'",
            expected="colours from 0 to 255",
            got=f"values from {low:g} to {high:g}",
            cure="The model was made for 8-bit pictures; convert the picture.",
        )
    return voxels / 255


def nonzero_box(voxels: Tensor) -> Box:
    """The smallest box that holds all voxels that any channel of (C, I, J, K) has not 0.

    A scan of zeros alone gives the whole.
    """
    there = (voxels != 0).any(dim=0)
    ends = []
    for axis in range(3):
        rest = [other for other in range(3) if other != axis]
        line = torch.nonzero(there.any(dim=rest[1]).any(dim=rest[0])).ravel()
        if not len(line):
            return slice(0, there.shape[0]), slice(0, there.shape[1]), slice(0, there.shape[2])
        ends.append(slice(int(line[0]), int(line[-1]) + 1))
    return ends[0], ends[1], ends[2]


def filled_nonzero(voxels: Tensor) -> Tensor:
    """Where any channel of (C, I, J, K) is not 0, with holes filled: (I, J, K) bool.

    A hole is a region of zeros that no face-to-face path joins to the border.
    """
    there = (voxels != 0).any(dim=0).numpy()
    empty = cc3d.connected_components(~there, connectivity=6)
    faces = [np.unique(empty.take(end, axis=axis)) for axis in range(3) for end in (0, -1)]
    outside = np.zeros(int(empty.max()) + 1, dtype=bool)
    outside[np.concatenate(faces)] = True
    outside[0] = False
    return torch.from_numpy(~outside[empty])
