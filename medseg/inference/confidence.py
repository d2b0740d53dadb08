"""How sure a network is of each label: the Dice that its own probabilities promise.

If probabilities are right, the Dice of a mask with the unknown truth is about twice the
probability inside it, over the probability everywhere plus the size of the mask (S. Mehrtash
et al., "Confidence calibration and predictive uncertainty estimation for deep medical image
segmentation", 2020, compare such figures with the true Dice). It is added up on the network's
grid, block by block, before post-processing: nothing of the size of the scan is held.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.core.plan import Plan
from medseg.inference.accumulator import Consume
from medseg.inference.products import probabilities
from medseg.inference.windows import Triple
from medseg.transforms.winners import winners

# Values (classes x voxels) that are worked on at a time.
_VALUES = 8_000_000
# Below this much probability, in voxels, a label that is absent is no surprise.
_NOTHING = 0.5


@dataclass(frozen=True)
class Sureness:
    """How sure a network is of one label, from 0 to 1.

    Attributes:
        dice: Promised Dice of the mask.
        inside: Mean probability inside the mask; 0 where there is none.
        found: Share of all probability that is inside the mask.
        disagreement: Standard deviation of probability over members and mirrored views, root
            mean square inside the mask; 0 where all agree. None where there is only one.
    """

    dice: float
    inside: float
    found: float
    disagreement: float | None = None


class Confidence:
    """Adds up blocks of logits on their way.

    Args:
        plan: Of the model.
        mask: (I, J, K) class indices on the network's grid, to ask about instead of the
            network's own labels; they do not overlap.
        spread: After the classes a block has a channel that tells how far members and views
            disagree (:class:`~medseg.inference.products.Spread`).
    """

    def __init__(
        self, plan: Plan, mask: NDArray[Any] | None = None, *, spread: bool = False
    ) -> None:
        self._plan, self._mask, self._spread = plan, mask, spread
        count = len(plan.labels)
        self._sums = torch.zeros((4, count), dtype=torch.float64)

    def before(self, consume: Consume) -> Consume:
        """A consumer of blocks that looks at each and hands it on."""

        def both(block: Tensor, corner: Triple) -> None:
            self.add(block, corner)
            consume(block, corner)

        return both

    def add(self, block: Tensor, corner: Triple) -> None:
        """Add a block (channels, i, j, k) of logits that begins at voxel ``corner``."""
        classes = self._plan.network.classes
        depth = max(1, _VALUES // max(1, block[:, 0].numel()))
        for start in range(0, int(block.shape[1]), depth):
            part = block[:, start : start + depth]
            variance = part[classes] if self._spread else None
            self._add(part[:classes], (corner[0] + start, corner[1], corner[2]), variance)

    def _add(self, logits: Tensor, corner: Triple, variance: Tensor | None) -> None:
        softmax = self._plan.activation == "softmax"
        chances = probabilities(logits, softmax=softmax)[int(softmax) :]
        if self._mask is not None:
            box = [slice(c, c + int(n)) for c, n in zip(corner, logits.shape[1:], strict=True)]
            own = np.ascontiguousarray(self._mask[*box]).astype(np.int64)
            labels: Tensor | None = torch.from_numpy(own).to(logits.device)
        else:
            labels = winners(logits, "softmax") if softmax else None
        for n, chance in enumerate(chances):
            # Regions may lie over each other: each is what is above one half.
            there = logits[n] > 0 if labels is None else labels == n + 1
            inside = float(chance[there].sum(dtype=torch.float64))
            apart = 0.0 if variance is None else float(variance[there].sum(dtype=torch.float64))
            sums = (inside, float(chance.sum(dtype=torch.float64)), float(there.sum()), apart)
            self._sums[:, n] += torch.tensor(sums, dtype=torch.float64)

    def of_labels(self) -> dict[str, Sureness]:
        """By label name; a label that is neither there nor expected counts as sure."""
        found = {}
        for name, column in zip(self._plan.labels.names, self._sums.T, strict=True):
            inside, everywhere, size, apart = (float(one) for one in column)
            nothing = size == 0 and everywhere < _NOTHING
            found[name] = Sureness(
                dice=1.0 if nothing else 2 * inside / max(everywhere + size, 1e-9),
                inside=inside / size if size else 0.0,
                found=1.0 if nothing else inside / max(everywhere, 1e-9),
                disagreement=math.sqrt(apart / max(size, 1)) if self._spread else None,
            )
        return found

    def to_json(self) -> dict[str, dict[str, float]]:
        """The same as plain JSON, with four digits."""
        return {
            name: {key: round(value, 4) for key, value in asdict(one).items() if value is not None}
            for name, one in self.of_labels().items()
        }
