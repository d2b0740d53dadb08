"""What losses need to know of logits, without a probability or one-hot map of all classes.

Of a softmax two things are enough: the log-probability of the truth at each voxel, and the sum
of each class's probabilities. Both come voxel run by voxel run, and so does their gradient, so
that beside the logits and their gradient nothing of that size is ever held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from medseg.training.targets import IGNORED, Targets

# Values worked on at a time: on a CPU as many as its near cache holds.
_RUN_CPU, _RUN_DEVICE = 1 << 18, 1 << 26


@dataclass(frozen=True)
class Evidence:
    """How well logits fit a truth, for all losses at one resolution.

    C are the labels, without background.

    Attributes:
        overlap: (N, C) probability of a label, summed over its true voxels.
        predicted: (N, C) the same, summed over all voxels.
        present: (N, C) true voxels.
        known: (N, C) 1 where the label was annotated in the sample, else 0.
        fit: Log-probability of the truth: (N, V), of regions (N, C, V); 0 where it is ignored.
        weight: How much each of them counts, of the same shape; 0 where it is ignored.
    """

    overlap: Tensor
    predicted: Tensor
    present: Tensor
    known: Tensor
    fit: Tensor
    weight: Tensor


def softmax_evidence(logits: Tensor, targets: Targets, weights: Tensor | None = None) -> Evidence:
    """Evidence of labels that exclude one another.

    Labels that were not annotated in a sample are one with its background there.

    Args:
        logits: (N, classes, I, J, K), background first.
        targets: Class indices as labels.
        weights: (classes,) of the cross-entropy; None for 1.

    Source: G. Shi et al., "Marginal loss and exclusion loss for partially supervised multi-organ
    segmentation", Medical Image Analysis 70, 2021.
    """
    flat, labels = logits.flatten(2), targets.labels.flatten(1)
    known = torch.ones(flat.shape[:2], device=flat.device)
    if targets.known is not None:
        known[:, 1:] = targets.known.to(flat.device, known.dtype)
        flat, labels = _merged(flat.float(), labels, known > 0)
    fit, predicted = _SoftmaxSums.apply(flat, labels)
    valid = (labels != IGNORED).to(fit.dtype)
    at = labels.clamp(min=0)
    zeros = torch.zeros_like(predicted)
    overlap = zeros.scatter_add(1, at, fit.exp() * valid)
    present = zeros.scatter_add(1, at, valid)
    weight = valid if weights is None else valid * weights[at]
    return Evidence(
        overlap[:, 1:], predicted[:, 1:], present[:, 1:], known[:, 1:], fit, weight
    )  # fmt: skip


def sigmoid_evidence(
    logits: Tensor, targets: Targets, membership: Tensor, weights: Tensor | None = None
) -> Evidence:
    """Evidence of regions, which may overlap.

    Args:
        logits: (N, regions, I, J, K).
        targets: Indices of cells as labels.
        membership: (indices, regions) 1 where a cell belongs to a region, else 0.
        weights: (regions,) of the cross-entropy; None for 1.
    """
    flat, labels = logits.flatten(2).float(), targets.labels.flatten(1)
    valid = (labels != IGNORED).to(flat.dtype)[:, None]
    truth = membership[labels.clamp(min=0)].movedim(-1, 1)
    known = torch.ones(flat.shape[:2], device=flat.device)
    if targets.known is not None:
        known = targets.known.to(flat.device, known.dtype)
    probability = flat.sigmoid() * valid
    weight = (valid * known[:, :, None]).expand_as(flat)
    if weights is not None:
        weight = weight * weights[:, None]
    fit = torch.nn.functional.logsigmoid(flat * (2 * truth - 1)) * valid
    return Evidence(
        (probability * truth).sum(dim=2), probability.sum(dim=2), (truth * valid).sum(dim=2),
        known, fit, weight,
    )  # fmt: skip


def merged_probabilities(logits: Tensor, targets: Targets) -> Tensor:
    """(N, labels, V) softmax probabilities without background; 0 where not annotated."""
    flat = logits.flatten(2).float()
    if targets.known is not None:
        known = torch.ones(flat.shape[:2], dtype=torch.bool, device=flat.device)
        known[:, 1:] = targets.known.to(flat.device)
        flat, _ = _merged(flat, targets.labels.flatten(1), known)
    return flat.softmax(dim=1)[:, 1:]


def _merged(logits: Tensor, labels: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, C, V) and labels (N, V) in which background holds what was not annotated."""
    never = -torch.inf
    foreground = known.clone()
    foreground[:, 0] = False
    background = logits.masked_fill(foreground[:, :, None], never).logsumexp(dim=1, keepdim=True)
    others = logits[:, 1:].masked_fill(~known[:, 1:, None], never)
    told = known.gather(1, labels.clamp(min=0)) | (labels == IGNORED)
    return torch.cat((background, others), dim=1), torch.where(told, labels, 0)


class _SoftmaxSums(torch.autograd.Function):
    """From logits (N, C, V) and labels (N, V) to the fit (N, V) and the sums (N, C).

    With p the softmax, y the truth, f the fit log p_y and s the sums of p, the gradient by logits
    is p * (ds - <ds, p> - df) + df at y.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        samples, classes, voxels = logits.shape
        fit = torch.zeros((samples, voxels), device=logits.device)
        norms = torch.empty((samples, voxels), device=logits.device)
        sums = torch.zeros((samples, classes), device=logits.device)
        for n, run in _runs(logits):
            part, label = logits[n, :, run].float(), labels[n, run]
            top = part.amax(dim=0)
            own = part.gather(0, label.clamp(min=0)[None])[0] - top
            powers = (part - top).exp_()
            total = powers.sum(dim=0)
            valid = label != IGNORED
            fit[n, run] = (own - total.log()) * valid
            norms[n, run] = top + total.log()
            sums[n] += powers @ (valid / total)
        ctx.save_for_backward(logits, labels, norms)
        return fit, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, labels, norms = ctx.saved_tensors
        by_fit, by_sums = gradients
        result = torch.empty_like(logits)
        for n, run in _runs(logits):
            part, label = logits[n, :, run].float(), labels[n, run]
            valid = label != IGNORED
            p = (part - norms[n, run]).exp_()
            own = by_fit[n, run] * valid
            # What is ignored gets exactly 0, whatever stands there.
            p *= valid
            shift = by_sums[n] @ p + own
            p *= by_sums[n][:, None] - shift
            p.scatter_add_(0, label.clamp(min=0)[None], own[None])
            result[n, :, run] = p
        return result, None


def _runs(logits: Tensor) -> list[tuple[int, slice]]:
    """Sample by sample, runs of voxels short enough for their classes to be held at once."""
    samples, classes, voxels = logits.shape
    most = _RUN_CPU if logits.device.type == "cpu" else _RUN_DEVICE
    step = max(1, most // classes)
    return [
        (n, slice(start, min(start + step, voxels)))
        for n in range(samples)
        for start in range(0, voxels, step)
    ]
