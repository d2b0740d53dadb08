"""Dice + cross-entropy, with deep supervision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Adds sums of this process up over all processes that train together.
Total = Callable[[Tensor], Tensor]


def alone(sums: Tensor) -> Tensor:
    """The sums of a process that trains alone: they are the total."""
    return sums


def dice_ce_loss(
    logits: Tensor, labels: Tensor, *, smooth: float = 1e-5, total: Total = alone
) -> Tensor:
    """Soft Dice loss plus cross-entropy, both with weight 1, in float32.

    Dice is the mean over labels without background, each over the whole batch at once. Both
    parts share one log-softmax, and no one-hot of the labels is built.

    Args:
        logits: (N, classes, I, J, K).
        labels: (N, I, J, K) int64 class indices.
        smooth: Keeps a label that is nowhere in the batch at loss 0 where nothing is predicted.
        total: Adds up over processes. Whatever is summed over voxels or samples goes through it
            before it is divided, so that every process has the loss of the whole batch.

    Source: Milletari et al., 3DV 2016; batch Dice + CE as in Isensee et al., 2021.
    """
    log_probability = logits.float().log_softmax(dim=1)
    own = log_probability.gather(1, labels[:, None]).reshape(-1)
    flat = labels.reshape(-1)
    zeros = torch.zeros(logits.shape[1], device=logits.device)
    overlap = zeros.scatter_add(0, flat, own.exp())
    present = zeros.scatter_add(0, flat, torch.ones_like(own))
    predicted = log_probability.exp().sum(dim=(0, 2, 3, 4))
    voxels = torch.full((1,), float(own.numel()), device=logits.device)
    # In one vector, so that processes talk once.
    sums = total(torch.cat((overlap, predicted + present, own.sum()[None], voxels)))
    overlap, sizes, fit = sums[: len(zeros)], sums[len(zeros) : -2], sums[-2] / sums[-1]
    dice = (2 * overlap + smooth) / (sizes + smooth)
    return 1 - dice[1:].mean() - fit


def deep_supervision_loss(
    outputs: Sequence[Tensor], labels: Tensor, *, total: Total = alone
) -> Tensor:
    """The loss at each resolution, halving in weight from one to the next.

    Args:
        outputs: Logits (N, classes, ...), full resolution first.
        labels: (N, I, J, K) int64 class indices at full resolution.
        total: Adds up over processes.

    Source: the weights of nnU-Net (Isensee et al., 2021), which sum to one.
    """
    weights = [0.5**level for level in range(len(outputs))]
    loss = torch.zeros((), device=labels.device)
    for weight, logits in zip(weights, outputs, strict=True):
        shrunk = _shrink(labels, logits.shape[2:])
        loss = loss + weight * dice_ce_loss(logits, shrunk, total=total)
    return loss / sum(weights)


def _shrink(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """Every n-th label (nearest to the origin of each cell), down to ``shape``."""
    steps = [old // new for old, new in zip(labels.shape[1:], shape, strict=True)]
    return labels[:, :: steps[0], :: steps[1], :: steps[2]]
