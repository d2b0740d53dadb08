"""The sum of the largest losses of a batch, also of one that several processes share.

The rank that counts is one among the voxels of all processes. The loss at it is found bit by bit:
floats above 0 are ordered as their bits are, read as whole numbers. Eight bits a round, each
process counts how many of its largest losses reach each of 256 bounds, and the counts are added
up; no process sees the losses of another, and none waits for its device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_BITS, _ROUNDS = 8, 4


def hardest(
    losses: Tensor, share: float, *, total: Callable[[Tensor], Tensor], processes: int = 1
) -> Tensor:
    """(2,) the sum of the largest losses of this process, and how many they are.

    Of equal losses at the last rank each counts in part, so that the parts make up the rank.

    Args:
        losses: Of any shape, at least 0; below 0 where a voxel does not count.
        share: Of all that count in all processes, at least one.
        total: Adds up over processes.
        processes: How many there are; their losses have the same shape.

    Source: Z. Wu et al., "Bridging category-level and instance-level semantic image
    segmentation", 2016 (online bootstrapping).
    """
    # What is no number counts as the largest, so that it is seen; the sum makes -0 a 0.
    flat = torch.nan_to_num(losses.reshape(-1), nan=torch.inf, posinf=torch.inf) + 0.0
    most = min(len(flat), round(share * len(flat) * processes) + 1)
    largest = flat.topk(most).values
    bits = largest.detach().float().contiguous().view(torch.int32).to(torch.int64)
    with torch.no_grad():
        counting = (losses.detach() >= 0).sum().double()
        wanted = (share * total(counting)).round().clamp(min=1)
        bound = _at_rank(bits.flip(0), wanted, total)
        above, level = bits > bound, (bits == bound) & (bits >= 0)
        counts = torch.stack((above.sum(), level.sum())).double()
        beyond, equal = total(counts).unbind()
        part = ((wanted - beyond) / equal.clamp(min=1)).clamp(0, 1)
        chosen = torch.where(above, 1.0, torch.where(level, part, 0.0)).to(largest.dtype)
    # Not times 0: what does not count may be infinite.
    kept = torch.where(chosen > 0, largest * chosen, 0.0)
    return torch.stack((kept.sum(), chosen.sum()))


def _at_rank(rising: Tensor, rank: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    """The bits of the ``rank``-th largest loss of all processes, 0 where there are fewer.

    Args:
        rising: (n,) bits of this process's largest losses, in order.
        rank: From 1.
        total: Adds up over processes.
    """
    steps = torch.arange(1 << _BITS, device=rising.device)
    bound = torch.zeros((), dtype=torch.int64, device=rising.device)
    for number in reversed(range(_ROUNDS)):
        bounds = bound + (steps << (_BITS * number))
        reaching = len(rising) - torch.searchsorted(rising, bounds)
        # The last of the bounds that enough losses reach.
        last = ((total(reaching.double()) >= rank).sum() - 1).clamp(min=0)
        bound = bound + (last << (_BITS * number))
    return bound
