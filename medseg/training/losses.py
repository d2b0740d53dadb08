"""Dice + cross-entropy, with deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dice_ce_loss(logits: Tensor, labels: Tensor, *, smooth: float = 1e-5) -> Tensor:
    """Soft Dice loss plus cross-entropy, both with weight 1, in float32.

    Dice is the mean over labels without background, each over the whole batch at once. Both
    parts share one log-softmax, and no one-hot of the labels is built.

    Args:
        logits: (N, classes, I, J, K).
        labels: (N, I, J, K) int64 class indices.
        smooth: Keeps a label that is nowhere in the batch at loss 0 where nothing is predicted.

    Source: Milletari et al., 3DV 2016; batch Dice + CE as in Isensee et al., 2021.
    """
    log_probability = logits.float().log_softmax(dim=1)
    own = log_probability.gather(1, labels[:, None]).reshape(-1)
    flat = labels.reshape(-1)
    zeros = torch.zeros(logits.shape[1], device=logits.device)
    overlap = zeros.scatter_add(0, flat, own.exp())
    present = zeros.scatter_add(0, flat, torch.ones_like(own))
    predicted = log_probability.exp().sum(dim=(0, 2, 3, 4))
    dice = (2 * overlap + smooth) / (predicted + present + smooth)
    return 1 - dice[1:].mean() - own.mean()


def deep_supervision_loss(outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
    """The loss at each resolution, halving in weight from one to the next.

    Args:
        outputs: Logits (N, classes, ...), full resolution first.
        labels: (N, I, J, K) int64 class indices at full resolution.

    Source: the weights of nnU-Net (Isensee et al., 2021), which sum to one.
    """
    weights = [0.5**level for level in range(len(outputs))]
    total = torch.zeros((), device=labels.device)
    for weight, logits in zip(weights, outputs, strict=True):
        total = total + weight * dice_ce_loss(logits, _shrink(labels, logits.shape[2:]))
    return total / sum(weights)


def _shrink(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """Every n-th label (nearest to the origin of each cell), down to ``shape``."""
    steps = [old // new for old, new in zip(labels.shape[1:], shape, strict=True)]
    return labels[:, :: steps[0], :: steps[1], :: steps[2]]
