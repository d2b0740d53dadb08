"""What a batch of patches is to look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

# In a batch; no loss looks at such voxels.
IGNORED = -1


@dataclass(frozen=True)
class Targets:
    """The truth of a batch.

    Attributes:
        labels: (N, I, J, K) int64 indices of the plan's label scheme, ``IGNORED`` where nobody
            has labelled.
        known: (N, labels) bool, which labels were annotated in the case of each sample; None
            where all were.
    """

    labels: Tensor
    known: Tensor | None = None

    def shrunk(self, shape: Sequence[int]) -> Targets:
        """Every n-th label (nearest to the origin of each cell), down to ``shape``."""
        i, j, k = (old // new for old, new in zip(self.labels.shape[1:], shape, strict=True))
        return replace(self, labels=self.labels[:, ::i, ::j, ::k])
