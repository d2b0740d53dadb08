"""Are paired organs on the sides that their names say?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet, left_right_pairs

# Share of an organ beyond the middle of the pair that is no longer chance.
_BEYOND = 0.2
_SLAB_VOXELS = 1 << 22


class Sides:
    """Counts where paired labels lie along left-right, slab by slab.

    Of pictures (one slice) nothing is told: they do not say which side is which.

    Args:
        geometry: Of the whole mask.
        labels: What its values mean.
    """

    def __init__(self, geometry: Geometry, labels: LabelSet) -> None:
        turn = geometry.orientation_to_ras()
        self._axis, self._flipped = turn.axes[0], turn.flips[0]
        self._pairs = left_right_pairs(labels) if geometry.shape[2] > 1 else ()
        self._values = {label.name: label.value for label in labels.labels}
        self._top = max(labels.values) + 1
        size = geometry.shape[self._axis] if self._pairs else 0
        self._counts = np.zeros((size, self._top), dtype=np.int64)

    def add(self, slab: NDArray[Any], start: int = 0) -> None:
        """Count slices (I, J, depth) of the mask that begin at ``start`` along K."""
        if not self._pairs:
            return
        depth = max(1, _SLAB_VOXELS // max(1, slab[..., 0].size))
        for first in range(0, slab.shape[2], depth):
            part = slab[..., first : first + depth]
            places = np.nonzero((part > 0) & (part < self._top))
            along = places[self._axis] + (start + first if self._axis == 2 else 0)
            flat = along * self._top + part[places].astype(np.int64)
            self._counts += np.bincount(flat, minlength=self._counts.size).reshape(
                self._counts.shape
            )

    def warnings(self) -> list[str]:
        """One line for each pair that looks swapped or mixed."""
        found = []
        for left, right in self._pairs:
            mine, its = (self._counts[:, self._values[name]] for name in (left, right))
            if not mine.any() or not its.any():
                continue
            places = np.arange(len(mine), dtype=np.float64)
            places = -places if self._flipped else places
            middles = [float(places @ one / one.sum()) for one in (mine, its)]
            if middles[0] > middles[1]:
                found.append(f"{left} lies to the right of {right}: sides may be swapped")
                continue
            middle = sum(middles) / 2
            for name, other, beyond in (
                (left, right, mine[places > middle].sum() / mine.sum()),
                (right, left, its[places < middle].sum() / its.sum()),
            ):
                if beyond > _BEYOND:
                    found.append(f"{100 * beyond:.0f} % of {name} lie on the side of {other}")
        return found


def side_warnings(mask: NDArray[Any], geometry: Geometry, labels: LabelSet) -> list[str]:
    """What looks wrong with the sides of paired organs, one line each.

    Args:
        mask: (I, J, K) integers.
        geometry: Its grid.
        labels: What the values mean.
    """
    sides = Sides(geometry, labels)
    sides.add(mask)
    return sides.warnings()
