"""Losses that look at where a border or a centre line lies: boundary, Hausdorff distance, clDice.

Distances are in units of the finest voxel side, so that coarse slices count as far as they are
apart; on voxels of equal sides values are MONAI's, which knows no spacing and no ignored voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.evaluation.nearest import distance_transform

# From a mask and its spacing to a number per voxel.
Field = Callable[[NDArray[np.bool_], Sequence[float]], NDArray[np.float32]]


class Maps:
    """Probabilities and truth of all labels at full resolution.

    Args:
        probability: (N, C, I, J, K) of each label, without background.
        truth: Of the same shape, 0 or 1.
        counts: Of the same shape, 1 where the voxel counts: not ignored, and the label annotated.
    """

    def __init__(self, probability: Tensor, truth: Tensor, counts: Tensor) -> None:
        self.probability, self.truth, self.counts = probability, truth, counts


def boundary_sums(maps: Maps, spacing_mm: Sequence[float]) -> Tensor:
    """(2,) what the boundary loss divides: probability times signed distance, and voxels.

    The distance is to the true border: above 0 outside, below 0 inside, 0 at the border's voxels.

    Source: H. Kervadec et al., "Boundary loss for highly unbalanced segmentation", MIDL 2019.
    """

    def signed(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float32]:
        inside = distance_transform(~mask, spacing) - 1
        return np.where(mask, -inside, distance_transform(mask, spacing))

    field = _each(maps.truth, signed, spacing_mm)
    counted = maps.counts
    return torch.stack(((maps.probability * field * counted).sum(), counted.sum()))


def hausdorff_sums(maps: Maps, spacing_mm: Sequence[float]) -> Tensor:
    """(2,) what the Hausdorff loss divides: squared errors times squared distances, and voxels.

    Distances are to the true border and to the predicted one.

    Source: D. Karimi and S. Salcudean, "Reducing the Hausdorff distance in medical image
    segmentation with convolutional neural networks", IEEE TMI 39, 2020 (distance transforms).
    """

    def squared(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float32]:
        both: NDArray[np.float32] = distance_transform(~mask, spacing)
        both += distance_transform(mask, spacing)
        return both * both

    near = _each(maps.truth, squared, spacing_mm)
    near += _each(maps.probability.detach(), squared, spacing_mm)
    errors = (maps.probability - maps.truth).square() * near * maps.counts
    return torch.stack((errors.sum(), maps.counts.sum()))


def cldice_sums(maps: Maps, *, iterations: int, smooth: float = 1.0) -> Tensor:
    """(2,) the sum of soft clDice losses over samples, and samples; for vessels and airways.

    Source: S. Shit et al., "clDice: a novel topology-preserving loss function for tubular
    structure segmentation", CVPR 2021; skeletons as MONAI draws them.
    """
    from monai.losses.cldice import soft_skel

    predicted, truth = maps.probability * maps.counts, maps.truth * maps.counts
    lines, true_lines = soft_skel(predicted, iterations), soft_skel(truth, iterations)
    axes = (1, 2, 3, 4)
    precision = ((lines * truth).sum(axes) + smooth) / (lines.sum(axes) + smooth)
    recall = ((true_lines * predicted).sum(axes) + smooth) / (true_lines.sum(axes) + smooth)
    losses = 1 - 2 * precision * recall / (precision + recall + 1e-4)
    return torch.stack((losses.sum(), torch.full_like(losses, 1.0).sum()))


def _each(maps: Tensor, field: Field, spacing_mm: Sequence[float]) -> Tensor:
    """A field of distances for the mask (> 0.5) of each sample and label.

    0 where a mask has no border: the loss says nothing there.
    """
    finest = min(spacing_mm)
    spacing = [side / finest for side in spacing_mm]
    masks = (maps > 0.5).cpu().numpy()
    fields = np.zeros(masks.shape, dtype=np.float32)
    for place in np.ndindex(masks.shape[:2]):
        mask = np.ascontiguousarray(masks[place])
        if mask.any() and not mask.all():
            fields[place] = field(mask, spacing)
    return torch.from_numpy(fields).to(maps.device)
