"""Losses by name and weight, at each resolution that a network gives.

All terms are divided sums over voxels or samples. The sums of a resolution are packed into one
vector, which processes that train together add up before anything is divided: each has the loss
of the whole batch. Formulas and sources: ``docs/losses.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg.core.loss_plan import BACKGROUND, LossTerm
from medseg.core.plan import Plan
from medseg.training.losses_hardest import hardest
from medseg.training.losses_maps import Maps, boundary_sums, cldice_sums, hausdorff_sums
from medseg.training.losses_sums import (
    Evidence,
    merged_probabilities,
    sigmoid_evidence,
    softmax_evidence,
)
from medseg.training.targets import IGNORED, Targets

# Adds sums of this process up over all processes that train together.
Total = Callable[[Tensor], Tensor]

# Keeps a label that is nowhere in the batch at loss 0 where nothing is predicted.
_SMOOTH = 1e-5
_TINY = 1e-12
_MAP_TERMS = ("boundary", "hausdorff", "cldice")
_VOXEL_TERMS = ("topk", "focal")


def alone(sums: Tensor) -> Tensor:
    """The sums of a process that trains alone: they are the total."""
    return sums


class SegmentationLoss:
    """The loss of a plan.

    Args:
        plan: Its terms, class weights and label scheme.
        device: Where the logits lie.
        total: Adds up over processes.
        processes: How many there are.
    """

    def __init__(
        self, plan: Plan, device: torch.device, *, total: Total = alone, processes: int = 1
    ) -> None:
        self.terms, self.total, self.processes = plan.training.loss.terms, total, processes
        self.spacing_mm = tuple(side or 1.0 for side in plan.spacing_mm)
        self.regions = plan.activation == "regions"
        members = torch.from_numpy(plan.scheme.membership)
        self.membership = members.to(device, torch.float32)
        given = dict(plan.training.loss.class_weights)
        names = [*([] if self.regions else [BACKGROUND]), *plan.labels.names]
        weights = torch.tensor([given.get(name, 1.0) for name in names], device=device)
        self.weights = weights if given else None

    def __call__(
        self, outputs: Sequence[Tensor], targets: Targets, *, progress: float = 1.0
    ) -> Tensor:
        """The loss of a batch; each next resolution has half the weight, together 1.

        Terms of borders and centre lines look at the full resolution alone.

        Args:
            outputs: Logits (N, classes, ...), full resolution first.
            targets: At full resolution.
            progress: Share of the run, for weights that change.

        Source: the weights of nnU-Net (Isensee et al., 2021).
        """
        weights = [0.5**level for level in range(len(outputs))]
        loss = torch.zeros((), device=targets.labels.device)
        for level, (weight, logits) in enumerate(zip(weights, outputs, strict=True)):
            share = weight / sum(weights)
            terms = {
                term: term.weight_at(progress) * (1.0 if term.name in _MAP_TERMS else share)
                for term in self.terms
                if level == 0 or term.name not in _MAP_TERMS
            }
            kept = {term: factor for term, factor in terms.items() if factor > 0}
            if kept:
                loss = loss + self._at(logits, targets.shrunk(logits.shape[2:]), kept)
        return loss

    def _at(self, logits: Tensor, targets: Targets, terms: dict[LossTerm, float]) -> Tensor:
        """The weighted terms at one resolution."""
        if self.regions:
            found = sigmoid_evidence(logits, targets, self.membership, self.weights)
        else:
            each = any(term.name in _VOXEL_TERMS for term in terms)
            found = softmax_evidence(logits, targets, self.weights, each_voxel=each)
        pairs = [self._pair(term, found, logits, targets) for term in terms]
        mean = _Areas.of(found)
        # In one vector, so that processes talk once.
        whole = self.total(torch.cat((mean.packed, *pairs)))
        areas = _Areas.unpacked(whole, mean.labels)
        rest = iter(whole[4 * mean.labels :].split([len(pair) for pair in pairs]))
        loss = torch.zeros((), device=logits.device)
        for term, factor in terms.items():
            sums = next(rest)
            value = sums[0] / (sums[1] + _TINY) if len(sums) else self._overlap(term, areas)
            loss = loss + factor * value
        return loss

    def _pair(self, term: LossTerm, found: Evidence, logits: Tensor, targets: Targets) -> Tensor:
        """(2,) numerator and denominator of a term; (0,) for those of overlap."""
        if term.name in _MAP_TERMS:
            maps = self._maps(logits, targets)
            if term.name == "cldice":
                return cldice_sums(maps, iterations=term.iterations)
            if term.name == "boundary":
                return boundary_sums(maps, self.spacing_mm)
            return hausdorff_sums(maps, self.spacing_mm)
        if term.name == "cross_entropy":
            return found.cross_entropy
        if term.name not in _VOXEL_TERMS:
            return found.overlap.new_zeros(0)
        assert found.fit is not None
        assert found.weight is not None
        if term.name == "topk":
            losses = torch.where(found.weight > 0, -found.fit * found.weight, -1.0)
            return hardest(losses, term.share, total=self.total, processes=self.processes)
        faded = (1 - found.fit.exp()).clamp(min=_TINY) ** term.gamma * found.fit
        return torch.stack((-(faded * found.weight).sum(), found.weight.sum()))

    def _overlap(self, term: LossTerm, areas: _Areas) -> Tensor:
        """1 - Dice and its kin, the mean over the labels that some sample knows."""
        hit, smooth = areas.overlap, _SMOOTH
        if term.name == "generalised_dice":
            rare = areas.present.clamp(min=_TINY) ** -2
            # A label that is nowhere weighs as much as the rarest, as in MONAI.
            there = areas.present > 0
            rarest = torch.where(there, rare, 0.0).amax()
            rare = torch.where(there, rare, rarest) * self._class_weights(areas)
            both = (rare * (areas.predicted + areas.present)).sum()
            return 1 - (2 * (rare * hit).sum() + smooth) / (both + smooth)
        if term.name == "tversky":
            spill, miss = areas.predicted - hit, areas.present - hit
            score = (hit + smooth) / (hit + term.alpha * spill + term.beta * miss + smooth)
        else:
            score = (2 * hit + smooth) / (areas.predicted + areas.present + smooth)
        weights = self._class_weights(areas)
        return 1 - (score * weights).sum() / weights.sum().clamp(min=_TINY)

    def _class_weights(self, areas: _Areas) -> Tensor:
        known = (areas.known > 0).to(areas.overlap.dtype)
        if self.weights is None:
            return known
        return known * (self.weights if self.regions else self.weights[1:])

    def _maps(self, logits: Tensor, targets: Targets) -> Maps:
        labels = targets.labels
        truth = self.membership[labels.clamp(min=0)].movedim(-1, 1)
        valid = (labels != IGNORED).to(truth.dtype)[:, None].expand_as(truth)
        if targets.known is not None:
            known = targets.known.to(truth.device, truth.dtype)
            valid = valid * known[:, :, None, None, None]
        if self.regions:
            return Maps(logits.float().sigmoid(), truth, valid)
        probability = merged_probabilities(logits, targets)
        return Maps(probability.reshape(truth.shape), truth, valid)


@dataclass(frozen=True)
class _Areas:
    """(C,) sums over a batch, of the samples that know the label."""

    overlap: Tensor
    predicted: Tensor
    present: Tensor
    known: Tensor

    @classmethod
    def of(cls, found: Evidence) -> _Areas:
        parts = (found.overlap, found.predicted, found.present)
        kept = [torch.where(found.known > 0, part, 0.0).sum(dim=0) for part in parts]
        return cls(kept[0], kept[1], kept[2], found.known.sum(dim=0))

    @classmethod
    def unpacked(cls, vector: Tensor, labels: int) -> _Areas:
        overlap, predicted, present, known = vector[: 4 * labels].split(labels)
        return cls(overlap, predicted, present, known)

    @property
    def labels(self) -> int:
        return len(self.overlap)

    @property
    def packed(self) -> Tensor:
        return torch.cat((self.overlap, self.predicted, self.present, self.known))
