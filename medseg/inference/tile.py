"""A tile to try backends on, and how close two of them are on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# Of the range of torch's logits; and share of voxels whose best class is the same.
TOLERANCE, EQUAL_SHARE = 1e-4, 0.9995


@dataclass(frozen=True)
class Agreement:
    """How close logits are to those of torch.

    Attributes:
        difference: The largest, as a share of the range of torch's logits.
        equal: Share of voxels with the same best class.
    """

    difference: float
    equal: float

    @property
    def close(self) -> bool:
        """Whether masks can be made from them as from torch's."""
        return self.difference <= TOLERANCE and self.equal >= EQUAL_SHARE

    def __str__(self) -> str:
        return f"off by {self.difference:.1e} of the range, {self.equal:.4%} of classes equal"


def sample_tile(channels: int, sides: tuple[int, int, int]) -> Tensor:
    """(1, channels, *sides) float32, always the same: air, coarse shapes, fine grain.

    Pure noise would try a network on nothing that it knows; a flat tile would hide all. A part
    of one value, as air has, shows sums that lose digits.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn((1, channels, *(max(1, side // 8) for side in sides)), generator=generator)
    smooth = interpolate(coarse, size=sides, mode="trilinear", align_corners=False)
    tile = smooth + 0.3 * torch.randn(smooth.shape, generator=generator)
    longest = sides.index(max(sides))
    tile.narrow(2 + longest, 0, sides[longest] // 2).fill_(-1.3)
    return tile


def agreement(reference: Tensor, logits: Tensor) -> Agreement:
    """Compare logits (N, classes, I, J, K) with the reference's."""
    span = float(reference.max() - reference.min()) or 1.0
    # A NaN anywhere makes the difference NaN, which is close to nothing.
    difference = float((reference - logits).abs().max()) / span
    equal = float((reference.argmax(1) == logits.argmax(1)).float().mean())
    return Agreement(difference, equal)
