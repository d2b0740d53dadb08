"""Resampling where slabs arrive one after another: along the slices, and across them.

``resample.resample_image`` of the whole, but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.core.geometry import Triple
from medseg.transforms.resample import (
    AxisRules,
    along,
    cubic_weights,
    nearest_index,
    resample_image,
)

# Beyond this many voxels a sample no longer shows in a cubic B-spline in single precision:
# each voxel further its weight falls to 0.27.
_SPLINE_REACH = 16


class Planes(Protocol):
    """Interpolates along the axis on which slabs arrive."""

    def through(self, start: int, slab: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Take planes (D, C, u, v) from ``start`` on; yield those that are complete by them."""
        ...


def planes_for(old: int, new: int, *, rules: AxisRules, axis: int, flipped: bool) -> Planes:
    """What interpolates ``old`` planes to ``new``, as the rules of ``axis`` say.

    Args:
        old: Planes that arrive.
        new: Planes that leave.
        rules: Of the image.
        axis: Along which they arrive.
        flipped: They arrive from the end to the start.
    """
    if rules.orders[axis] == 3 and old != new:
        return SplinePlanes(old, new, flipped=flipped)
    return LinePlanes(old, new, rules=rules, axis=axis, flipped=flipped)


class LinePlanes:
    """Interpolation along the axis on which slabs arrive, one plane carried over.

    Half-pixel centres, edges repeated: ``resample.resample_image`` along one axis.
    """

    def __init__(self, old: int, new: int, *, rules: AxisRules, axis: int, flipped: bool) -> None:
        # Where all axes are linear torch interpolates, which counts in float32: so do we.
        real = np.float32 if rules.orders == (1, 1, 1) else np.float64
        index: NDArray[Any] = np.arange(new).astype(real)
        position = ((index + 0.5) * (real(old) / real(new)) - 0.5).clip(0, old - 1)
        if rules.orders[axis] == 0:
            position = nearest_index(old, new).astype(real)
        self._below = np.floor(position).astype(np.intp)
        self._above = np.minimum(self._below + 1, old - 1)
        self._weight = (position - self._below).astype(np.float32)
        self._same, self._flipped = old == new, flipped
        self._carried: Tensor | None = None

    def through(self, start: int, slab: Tensor) -> Iterator[tuple[int, Tensor]]:
        """See :class:`Planes`."""
        if self._same:
            yield start, slab
            return
        fresh = start, start + slab.shape[0]
        if self._carried is not None:
            pair = [slab, self._carried] if self._flipped else [self._carried, slab]
            slab = torch.cat(pair)
            start -= not self._flipped
        # A plane is complete with the later of its two neighbours.
        later = self._below if self._flipped else self._above
        wanted = np.flatnonzero((later >= fresh[0]) & (later < fresh[1]))
        if wanted.size:
            below, above, weight = (
                torch.from_numpy(half[wanted])
                for half in (self._below - start, self._above - start, self._weight)
            )
            leaving = torch.lerp(slab[below], slab[above], weight[:, None, None, None])
            yield int(wanted[0]), leaving
        self._carried = slab[:1].clone() if self._flipped else slab[-1:].clone()


class SplinePlanes:
    """Cubic B-spline along the axis on which slabs arrive; some 30 planes are carried over.

    A plane needs all others, but far ones so little that single precision does not show it.
    """

    def __init__(self, old: int, new: int, *, flipped: bool) -> None:
        self._position = (np.arange(new) + 0.5) * (old / new) - 0.5
        below = np.floor(self._position).astype(np.intp)
        self._first = np.maximum(below - _SPLINE_REACH, 0)
        self._end = np.minimum(below + 2 + _SPLINE_REACH, old)
        self._flipped = flipped
        # Planes [_left, _right) that leave are still to come.
        self._left, self._right = 0, new
        self._held: tuple[int, Tensor] | None = None

    def through(self, start: int, slab: Tensor) -> Iterator[tuple[int, Tensor]]:
        """See :class:`Planes`."""
        if self._held is not None:
            before, held = self._held
            slab = torch.cat([slab, held] if self._flipped else [held, slab])
            start = start if self._flipped else before
        stop = start + slab.shape[0]
        if self._flipped:
            left = int(np.searchsorted(self._first, start))
            ready = slice(min(left, self._right), self._right)
            self._right = ready.start
        else:
            right = int(np.searchsorted(self._end, stop, side="right"))
            ready = slice(self._left, max(right, self._left))
            self._left = ready.stop
        if ready.stop > ready.start:
            low, high = int(self._first[ready.start]), int(self._end[ready.stop - 1])
            weights = cubic_weights(self._position[ready] - low, high - low)
            seen = slab[low - start : high - start]
            leaving = weights @ seen.reshape(seen.shape[0], -1)
            yield ready.start, leaving.reshape(-1, *seen.shape[1:])
        if self._right > self._left:
            low = start if self._flipped else int(self._first[self._left])
            high = int(self._end[self._right - 1]) if self._flipped else stop
            self._held = low, slab[low - start : high - start].clone()


class Across:
    """Resampling of a slab along its other axes, before and after that of its slices.

    Args:
        old: Voxels that the working grid covers, along the working axes.
        new: The working grid.
        rules: Of the image.
        axis: Along which slabs arrive.
        ranges: Least and largest normalised values, from :func:`ranges_needed` on: cubic values
            are clipped to them once all axes but the separate one are done. None: clipping, if
            any, needs a slab alone.
    """

    def __init__(
        self,
        old: Triple,
        new: Triple,
        *,
        rules: AxisRules,
        axis: int,
        ranges: tuple[Tensor, Tensor] | None,
    ) -> None:
        self._new, self._rules, self._axis, self._ranges = new, rules, axis, ranges
        changed = [n for n in range(3) if old[n] != new[n]]
        within = [n for n in changed if n not in (axis, rules.separate)]
        self._before = sorted(within, key=lambda n: new[n] / old[n])
        self._last = rules.separate if rules.separate in changed else None

    def before(self, slab: Tensor) -> Tensor:
        """What can be done to a slab (C, I, J, K) by itself."""
        if self._ranges is None:
            thick = int(slab.shape[self._axis + 1])
            a, b, c = (thick if n == self._axis else self._new[n] for n in range(3))
            return resample_image(slab, (a, b, c), rules=self._rules)
        return self._each(slab, self._before)

    def after(self, planes: Tensor) -> Tensor:
        """The rest, once the slices are interpolated."""
        if self._ranges is None:
            return planes
        clipped = torch.clamp(planes, *self._ranges)
        return clipped if self._last is None else self._each(clipped, [self._last])

    def _each(self, slab: Tensor, axes: list[int]) -> Tensor:
        done = list(slab)
        for n in axes:
            done = [along(one, n, self._new[n], self._rules.orders[n]) for one in done]
        return torch.stack(done)


def ranges_needed(old: Triple, new: Triple, rules: AxisRules, axis: int) -> tuple[int, ...] | None:
    """Over which axes of (C, I, J, K) the range of values must be known before planes leave.

    None where values are not clipped, or a slab alone tells.
    """
    changed = [n for n in range(3) if old[n] != new[n]]
    cubic = any(rules.orders[n] == 3 for n in changed if n != rules.separate)
    if not cubic or rules.separate == axis:
        return None
    return tuple(n + 1 for n in range(3) if n != rules.separate)
