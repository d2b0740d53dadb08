"""Masks with faults of a wanted size, planted where the truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[Any]
Rng = np.random.Generator
#: By name, from below which Dice to above which.
SIZES = {"small": (0.8, 0.9), "medium": (0.6, 0.8), "large": (0.0, 0.6)}
KINDS = ("part missing", "shifted", "swapped", "leaked", "wrong scan")
_TRIES = 14


@dataclass(frozen=True)
class Planted:
    """A mask with a fault.

    Attributes:
        kind: Of ``KINDS``.
        value: The label that is at fault.
        mask: (I, J, K).
    """

    kind: str
    value: int
    mask: Mask


def dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Twice the shared voxels over the sum of both."""
    return 2 * int((first & second).sum()) / max(1, int(first.sum()) + int(second.sum()))


def plant(
    mask: Mask, value: int, kind: str, size: str, *, rng: Rng, spacing_mm: Any, other: Mask
) -> Planted | None:
    """Plant a fault in one label so that its Dice with what it was is of the wanted size.

    Args:
        mask: (I, J, K), sound.
        value: The label.
        kind: Of ``KINDS``.
        size: Of ``SIZES``.
        rng: Chance.
        spacing_mm: Of the voxels.
        other: The mask of another case, for ``wrong scan``.

    Returns:
        None where this label cannot have such a fault.
    """
    low, high = SIZES[size]
    wanted = rng.uniform(max(low, 0.15), high)
    make = _MAKERS[kind](mask, value, rng, np.asarray(spacing_mm), other)
    if make is None:
        return None
    least, most = 0.0, 1.0
    for _ in range(_TRIES):
        strength = (least + most) / 2
        made = make(strength)
        got = dice(mask == value, made == value)
        if low < got < high and abs(got - wanted) < 0.04:
            return Planted(kind, value, made)
        least, most = (strength, most) if got > wanted else (least, strength)
    return Planted(kind, value, made) if low < got < high else None


Maker = Callable[[float], Mask]


def _missing(mask: Mask, value: int, rng: Rng, spacing: Any, other: Mask) -> Maker:
    """All on one side of a plane, or in a ball at its surface, is lost."""
    region = mask == value
    places = np.argwhere(region) * spacing
    if rng.random() < 0.5:
        direction = rng.normal(size=3)
        order = places @ direction
    else:
        order = -np.linalg.norm(places - places[rng.integers(len(places))], axis=1)
    order = order.argsort()

    def make(strength: float) -> Mask:
        made = mask.copy()
        gone = np.argwhere(region)[order[len(order) - int(strength * len(order)) :]]
        made[tuple(gone.T)] = 0
        return made

    return make


def _shifted(mask: Mask, value: int, rng: Rng, spacing: Any, other: Mask) -> Maker:
    """The label lies beside its place."""
    region = mask == value
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    reach_mm = 1.2 * float((np.ptp(np.argwhere(region), axis=0) * spacing).max()) + 2

    def make(strength: float) -> Mask:
        moved = ndimage.shift(
            region.astype(np.float32), direction * strength * reach_mm / spacing, order=1
        )
        made = np.where(region, 0, mask).astype(mask.dtype)
        made[moved > 0.5] = value
        return made

    return make


def _swapped(mask: Mask, value: int, rng: Rng, spacing: Any, other: Mask) -> Maker | None:
    """Part of the label bears the name of its nearest neighbour, and of that one its own."""
    others = [int(v) for v in np.unique(mask) if v not in (0, value)]
    if not others:
        return None
    region = mask == value
    centre = np.argwhere(region).mean(axis=0) * spacing
    middles = {v: np.argwhere(mask == v).mean(axis=0) * spacing for v in others}
    partner = min(others, key=lambda v: float(np.linalg.norm(middles[v] - centre)))
    towards = middles[partner] - centre

    def farthest(label: int, direction: Any, share: float) -> Any:
        places = np.argwhere(mask == label)
        order = (places * spacing @ direction).argsort()
        return tuple(places[order[len(order) - int(share * len(order)) :]].T)

    def make(strength: float) -> Mask:
        made = mask.copy()
        made[farthest(value, towards, strength)] = partner
        made[farthest(partner, -towards, strength)] = value
        return made

    return make


def _leaked(mask: Mask, value: int, rng: Rng, spacing: Any, other: Mask) -> Maker:
    """It has run out at one place into what lies beside it."""
    region = mask == value
    rim = np.argwhere(region & ~ndimage.binary_erosion(region))
    start = rim[rng.integers(len(rim))]
    away = np.argwhere(region).mean(axis=0) - start
    grid = np.moveaxis(np.indices(mask.shape), 0, -1)
    reach_mm = 1.6 * float((np.ptp(np.argwhere(region), axis=0) * spacing).max())
    far_mm = np.linalg.norm((grid - start + 0.3 * away) * spacing, axis=-1)

    def make(strength: float) -> Mask:
        made = mask.copy()
        made[(far_mm < strength * reach_mm) & (mask == 0)] = value
        return made

    return make


def _wrong_scan(mask: Mask, value: int, rng: Rng, spacing: Any, other: Mask) -> Maker:
    """The mask of another patient, laid over this one's as well as it may."""
    foreign = np.zeros_like(mask)
    size = [min(a, b) for a, b in zip(mask.shape, other.shape, strict=True)]
    foreign[tuple(slice(0, n) for n in size)] = other[tuple(slice(0, n) for n in size)]
    if not (foreign == value).any():
        return lambda strength: mask
    gap = np.argwhere(mask == value).mean(axis=0) - np.argwhere(foreign == value).mean(axis=0)
    direction = rng.normal(size=3)
    reach = 0.6 * float(np.ptp(np.argwhere(mask == value), axis=0).max())

    def make(strength: float) -> Mask:
        stray = direction / np.linalg.norm(direction) * strength * reach
        return np.asarray(ndimage.shift(foreign, np.round(gap + stray), order=0))

    return make


_MAKERS = {
    "part missing": _missing, "shifted": _shifted, "swapped": _swapped, "leaked": _leaked,
    "wrong scan": _wrong_scan,
}  # fmt: skip
