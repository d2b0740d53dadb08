"""What losses need to know of logits, without a probability or one-hot map of all classes.

Of a softmax two things are enough: the log-probability of the truth at each voxel, and the sum
of each class's probabilities. Both come voxel run by voxel run, and so does their gradient, so
that beside the logits and their gradient nothing of that size is ever held.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from medseg.training.targets import IGNORED, Targets

# Values worked on at a time: on a CPU about as many as its caches hold.
_RUN_CPU, _RUN_DEVICE = 1 << 20, 1 << 26


@dataclass(frozen=True)
class Evidence:
    """How well logits fit a truth, for all losses at one resolution.

    C are the labels, without background.

    Attributes:
        overlap: (N, C) probability of a label, summed over its true voxels.
        predicted: (N, C) the same, summed over all voxels.
        present: (N, C) true voxels.
        known: (N, C) 1 where the label was annotated in the sample, else 0.
        cross_entropy: (2,) its weighted sum, and the sum of weights.
        fit: Log-probability of the truth: (N, V), of regions (N, C, V); 0 where it is ignored.
            None where it was not asked for.
        weight: How much each of them counts, of the same shape; 0 where it is ignored.
    """

    overlap: Tensor
    predicted: Tensor
    present: Tensor
    known: Tensor
    cross_entropy: Tensor
    fit: Tensor | None = None
    weight: Tensor | None = None


def softmax_evidence(
    logits: Tensor, targets: Targets, weights: Tensor | None = None, *, each_voxel: bool = False
) -> Evidence:
    """Evidence of labels that exclude one another.

    Labels that were not annotated in a sample are one with its background there.

    Args:
        logits: (N, classes, I, J, K), background first.
        targets: Class indices as labels.
        weights: (classes,) of the cross-entropy; None for 1.
        each_voxel: Give the fit of each voxel, too.

    Source: G. Shi et al., "Marginal loss and exclusion loss for partially supervised multi-organ
    segmentation", Medical Image Analysis 70, 2021.
    """
    flat, labels = logits.flatten(2), targets.labels.flatten(1)
    known = torch.ones(flat.shape[:2], device=flat.device)
    if targets.known is not None:
        known[:, 1:] = targets.known.to(flat.device, known.dtype)
        flat, labels = _merged(flat.float(), labels, known > 0)
    # On a GPU an answer would be waited for.
    ignores = flat.device.type != "cpu" or bool((labels == IGNORED).any())
    rule = _Rule(weights, ignores=ignores, each_voxel=each_voxel)
    overlap, predicted, present, pair, fit = _SoftmaxSums.apply(flat, labels, rule)
    found = Evidence(overlap[:, 1:], predicted[:, 1:], present[:, 1:], known[:, 1:], pair)
    if not each_voxel:
        return found
    return replace(found, fit=fit, weight=rule.weight(labels))


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
        known, torch.stack((-(fit * weight).sum(), weight.sum())), fit, weight,
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


@dataclass(frozen=True)
class _Rule:
    """How voxels count, and what is wanted of them."""

    weights: Tensor | None
    ignores: bool
    each_voxel: bool

    def weight(self, labels: Tensor) -> Tensor:
        """How much voxels of these labels count, of the same shape."""
        valid = (labels != IGNORED).float()
        return valid if self.weights is None else valid * self.weights[labels.clamp(min=0)]


class _SoftmaxSums(torch.autograd.Function):
    """From logits (N, C, V) and labels (N, V) to the sums of :class:`Evidence`.

    With p the softmax, y the truth, s the gradient by the sums of p, and f the one by log p_y, from
    overlap, cross-entropy and fit together, that by logits is p * (s - <s, p> - f) + f at y.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, rule: _Rule) -> tuple[Tensor, ...]:
        samples, classes, voxels = logits.shape
        new = partial(torch.zeros, device=logits.device)
        fit = new((samples, voxels) if rule.each_voxel else 0)
        norms = torch.empty((samples, voxels), device=logits.device)
        overlap, predicted, present = (new((samples, classes)) for _ in range(3))
        pair = new(2)
        for n, run in _runs(logits):
            part, label = logits[n, :, run].float(), labels[n, run]
            at = label.clamp(min=0) if rule.ignores else label
            top = part.amax(dim=1)
            powers = (part - top[:, None]).exp_()
            total = powers.sum(dim=1)
            norm = norms[n, run] = top.add_(total.log())
            own = part.gather(1, at[:, None])[:, 0].sub_(norm)
            share, hit, valid = total.reciprocal_(), own.exp(), torch.ones_like(own)
            if rule.ignores:
                valid = (label != IGNORED).float()
                own, share, hit = own * valid, share * valid, hit * valid
            predicted[n] += (powers @ share[:, :, None])[:, :, 0]
            _add_by_label(overlap[n], at, hit)
            _add_by_label(present[n], at, valid)
            weight = valid if rule.weights is None else rule.weight(label)
            pair += torch.stack((-(own * weight).sum(), weight.sum()))
            if rule.each_voxel:
                fit[n, run] = own
        ctx.save_for_backward(logits, labels, norms)
        ctx.rule = rule
        ctx.mark_non_differentiable(present)
        return overlap, predicted, present, pair, fit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, norms = ctx.saved_tensors
        rule: _Rule = ctx.rule
        by_overlap, by_predicted, _, by_pair, by_fit = gradients
        result = torch.empty_like(logits)
        for n, run in _runs(logits):
            label, place = labels[n, run], result[n, :, run]
            at = label.clamp(min=0) if rule.ignores else label
            exact = place.dtype == torch.float32
            norm = norms[n, None, run]
            p = torch.sub(logits[n, :, run], norm, out=place if exact else None).exp_()
            own = p.gather(1, at[:, None])[:, 0].mul_(by_overlap[n].gather(1, at))
            plain = rule.weights is None and not rule.ignores
            own -= by_pair[0] if plain else by_pair[0] * rule.weight(label)
            if rule.each_voxel:
                own += by_fit[n, run]
            if rule.ignores:
                # What is ignored gets exactly 0, whatever stands there.
                valid = label != IGNORED
                own, p = own * valid, p.mul_(valid[:, None])
            p *= by_predicted[n, :, None] - (by_predicted[n, None] @ p + own[:, None])
            p.scatter_add_(1, at[:, None], own[:, None])
            if not exact:
                place.copy_(p)
        return result, None, None


def _add_by_label(sums: Tensor, labels: Tensor, values: Tensor) -> None:
    """Add values (N, V) to sums (N, C), each to its label's.

    On a GPU voxels would wait for one another to add to so few places, in whatever order.
    """
    if _adds_in_turn(sums.device):
        sums.scatter_add_(1, labels, values)
        return
    places = torch.arange(sums.shape[1], device=sums.device)[:, None]
    sums += torch.where(labels[:, None] == places, values[:, None], 0.0).sum(dim=2)


def _adds_in_turn(device: torch.device) -> bool:
    return device.type == "cpu"


def _runs(logits: Tensor) -> list[tuple[slice, slice]]:
    """Some samples, or some voxels of one: as many as may be held with all their classes."""
    samples, classes, voxels = logits.shape
    most = _RUN_CPU if logits.device.type == "cpu" else _RUN_DEVICE
    step = min(voxels, max(1, most // classes))
    group = max(1, most // (classes * voxels))
    return [
        (slice(n, n + group), slice(start, min(start + step, voxels)))
        for n in range(0, samples, group)
        for start in range(0, voxels, step)
    ]
