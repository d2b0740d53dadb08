"""Where a training patch is centred, so that small and rare labels are seen often enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.core.plan import Plan
from medseg.training.cache import CachedCase


@dataclass(frozen=True)
class Spot:
    """A voxel to centre a patch on.

    Attributes:
        case: Index of the case.
        voxel: (3,) place in it.
    """

    case: int
    voxel: NDArray[np.int64]


class ClassSampler:
    """Draws voxels of labels, as ``TrainingPlan.class_sampling`` says.

    A label that was not annotated in a case is never looked for there.

    Args:
        cases: To draw from.
        plan: Its label scheme and sampling.
    """

    def __init__(self, cases: Sequence[CachedCase], plan: Plan) -> None:
        self.cases, self.kind = cases, plan.training.class_sampling
        self.ignores = plan.ignore is not None
        member = plan.scheme.membership
        self.annotated = [
            sorted(
                index
                for index in case.places
                if index == 0 or case.known is None or (member[index] & case.known).any()
            )
            for case in cases
        ]
        self.shown = [[index for index in found if index > 0] for found in self.annotated]
        often = Counter(index for found in self.shown for index in found)
        self.often = often
        self.holders = {
            index: [n for n, found in enumerate(self.shown) if index in found]
            for index in sorted(often)
        }

    def anywhere(self, rng: np.random.Generator, case: int) -> Spot | None:
        """A voxel that somebody has labelled, where others are to be ignored; else None."""
        if not self.ignores or not self.annotated[case]:
            return None
        return self._voxel(rng, case, self.annotated[case])

    def foreground(self, rng: np.random.Generator, case: int) -> Spot | None:
        """A voxel of a label: of this case, or where labels are balanced of any; None without."""
        if self.kind == "balanced":
            if not self.holders:
                return None
            index = list(self.holders)[rng.integers(len(self.holders))]
            holders = self.holders[index]
            return self._voxel(rng, holders[rng.integers(len(holders))], [index])
        found = self.shown[case]
        if not found:
            return None
        if self.kind == "rare":
            weights = np.array([1 / self.often[index] for index in found])
            found = [found[int(rng.choice(len(found), p=weights / weights.sum()))]]
        return self._voxel(rng, case, found)

    def _voxel(self, rng: np.random.Generator, case: int, indices: Sequence[int]) -> Spot:
        index = indices[int(rng.integers(len(indices)))]
        voxels = self.cases[case].places[index]
        return Spot(case, voxels[rng.integers(len(voxels))])
