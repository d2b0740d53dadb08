"""How patches cover a volume, and in which order: pure arithmetic, no network."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product
from math import ceil, prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Triple = tuple[int, int, int]


def window_starts(size: int, patch: int, step: float) -> tuple[int, ...]:
    """Starts of windows along one axis: first at 0, last at the end, evenly between.

    Args:
        size: Voxels of the volume; at least ``patch``.
        patch: Voxels of a window.
        step: The largest step, as a share of the window.
    """
    if size < patch:
        raise ValueError(f"size {size} is smaller than the window {patch}")
    room = size - patch
    count = ceil(room / max(1.0, patch * step)) + 1
    return tuple(int(start) for start in np.round(np.linspace(0, room, count)))


def padding(shape: Triple, patch: Triple) -> tuple[tuple[int, int], ...]:
    """Voxels to add before and after each axis, so that a window fits; centred."""
    missing = [max(0, p - s) for s, p in zip(shape, patch, strict=True)]
    return tuple((gap // 2, gap - gap // 2) for gap in missing)


@dataclass(frozen=True)
class Bell:
    """Importance of the voxels of a window, the product of one bell per axis.

    Attributes:
        sigma: Standard deviation as a share of each side.
        floor: The least importance along an axis.
        flat: All voxels count alike.
        centre: ``"voxel"``: the middle lies on index side // 2, also where a side is even.

    Source: the weighting of nnU-Net (Isensee et al., Nature Methods 18, 2021).
    """

    sigma: float = 0.125
    floor: float = 0.0
    flat: bool = False
    centre: Literal["middle", "voxel"] = "middle"

    def along(self, side: int) -> NDArray[np.float64]:
        """(side,) importance, 1 in the middle, never 0."""
        if self.flat:
            return np.ones(side)
        middle = side // 2 if self.centre == "voxel" else (side - 1) / 2
        curve = np.exp(-0.5 * ((np.arange(side) - middle) / (self.sigma * side)) ** 2)
        return np.asarray(np.maximum(curve, max(self.floor, 1e-12)))


@dataclass(frozen=True)
class Tiling:
    """The windows over a volume, ordered so that what is done can leave early.

    Windows of one start along the first axis of ``order`` come together, and among them those
    of one start along the second. The starts cut the volume into *blocks*: no window of a
    later start touches the block before it, which can leave then.

    Attributes:
        shape: Voxels of the volume, without padding.
        patch: Voxels of a window.
        gaps: Padding before and after each axis, where a window is larger than the volume.
        starts: Of the windows along each axis, in voxels of the padded volume.
        order: The axes from the slowest to the fastest.
    """

    shape: Triple
    patch: Triple
    gaps: tuple[tuple[int, int], ...]
    starts: tuple[tuple[int, ...], ...]
    order: Triple

    @classmethod
    def of(
        cls, shape: Triple, patch: Triple, step: float, *, order: Triple | None = None
    ) -> Tiling:
        """Cover a volume; the order that carries the fewest voxels is chosen.

        Args:
            shape: Voxels of the volume.
            patch: Voxels of a window.
            step: The largest step, as a share of the window.
            order: Take this one instead.
        """
        whole = [max(s, p) for s, p in zip(shape, patch, strict=True)]
        starts = tuple(window_starts(s, p, step) for s, p in zip(whole, patch, strict=True))
        orders = [order] if order else [(a, b, c) for a, b, c in permutations(range(3))]
        choices = [cls(shape, patch, padding(shape, patch), starts, one) for one in orders]
        return min(choices, key=lambda tiling: (tiling._roughly_carried(), tiling.order))

    def __len__(self) -> int:
        return prod(len(starts) for starts in self.starts)

    def __iter__(self) -> Iterator[Triple]:
        """Which window: its number along each axis (I, J, K), in the order of the work."""
        for steps in product(*(range(len(self.starts[axis])) for axis in self.order)):
            place = dict(zip(self.order, steps, strict=True))
            yield place[0], place[1], place[2]

    def inside(self, window: Triple) -> tuple[slice, slice, slice]:
        """The box of the volume that a window covers, without padding."""
        a, b, c = (
            slice(max(0, starts[n] - before), min(size, starts[n] - before + side))
            for starts, n, (before, _), size, side in zip(
                self.starts, window, self.gaps, self.shape, self.patch, strict=True
            )
        )
        return a, b, c

    @cached_property
    def edges(self) -> tuple[tuple[int, ...], ...]:
        """Where blocks begin along each axis, and the end of the last, in voxels.

        At the starts of windows. Along the second axis also at the ends that lie in the last
        window, so that no block is much longer than a step.
        """
        edges = []
        for axis, (starts, size) in enumerate(zip(self.starts, self.shape, strict=True)):
            ends = [start + self.patch[axis] for start in starts]
            late = [end for end in ends if starts[-1] < end < size]
            edges.append((0, *starts[1:], *(late if axis == self.order[1] else ()), size))
        return tuple(edges)

    def last_row(self, place: tuple[int, int]) -> tuple[int, int]:
        """The last windows, along the first and second axis, that touch a block."""
        return place[0], min(place[1], len(self.starts[self.order[1]]) - 1)

    def reached(self, axis: int, window: int) -> list[tuple[int, int]]:
        """Which blocks a window touches along an axis, and how far into each, in voxels."""
        edges = self.edges[axis]
        stop = min(edges[window] + self.patch[axis], self.shape[axis])
        last = bisect_left(edges, stop)
        return [(n, min(stop, edges[n + 1]) - edges[n]) for n in range(window, last)]

    @cached_property
    def carried_voxels(self) -> int:
        """The most voxels held at a time: the touched part of blocks that cannot leave yet.

        With what is held twice while a block grows.
        """
        first, second, third = self.order
        held: dict[tuple[int, int], tuple[int, int]] = {}
        now = most = 0
        columns = [self.reached(second, m) for m in range(len(self.starts[second]))]
        for n in range(len(self.starts[first])):
            rows = self.reached(first, n)
            for m, reach in enumerate(columns):
                for (i, deep), (j, wide) in product(rows, reach):
                    a, b = held.get((i, j), (0, 0))
                    if deep > a or wide > b:
                        held[i, j] = (max(a, deep), max(b, wide))
                        most = max(most, now + prod(held[i, j]))
                        now += prod(held[i, j]) - a * b
                for place in [place for place in held if self.last_row(place) == (n, m)]:
                    now -= prod(held.pop(place))
        return most * self.shape[third]

    def _roughly_carried(self) -> int:
        """Near ``carried_voxels``, to choose the order by."""
        first, second, third = self.order
        sides = [min(p, s) for p, s in zip(self.patch, self.shape, strict=True)]
        ahead = int(np.diff(self.starts[first]).max(initial=0)) or sides[first]
        kept = (sides[first] - ahead) * self.shape[second] + ahead * sides[second]
        return kept * self.shape[third]

    def shares(self, bell: Bell) -> list[list[NDArray[np.float32]]]:
        """What each window counts for along each axis; at every voxel they sum to 1.

        The weight of a window is the product of one vector per axis, so the sum of all weights
        over a voxel is a product of three sums that are known before: dividing by them here
        leaves nothing to divide at the end, and no volume of weights to hold.

        Returns:
            For each axis, for each start: (side,) float32, over the padded volume.
        """
        shares = []
        for axis, side in enumerate(self.patch):
            weight = bell.along(side)
            total = np.zeros(sum(self.gaps[axis]) + self.shape[axis])
            for start in self.starts[axis]:
                total[start : start + side] += weight
            shares.append(
                [(weight / total[s : s + side]).astype(np.float32) for s in self.starts[axis]]
            )
        return shares
