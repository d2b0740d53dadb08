"""Faults planted in sound masks, to learn what faulty masks look like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[Any]
Region = NDArray[np.bool_]
Floats = NDArray[np.float64]
Rng = np.random.Generator

# Strengths are drawn up to 1; all of a fault at 1 leaves little of the mask.
_WEAKEST = 0.03


def faulty_masks(
    mask: Mask, value: int, spacing_mm: tuple[float, float, float], rng: Rng, *, each: int = 1
) -> Iterator[Mask]:
    """Masks in which one label is at fault: moved, cut, thinned, swollen, spilt or renamed.

    Args:
        mask: (I, J, K), sound; not changed.
        value: The label, which it shows.
        spacing_mm: Of the voxels.
        rng: Chance: how strong a fault is, and where.
        each: Masks with each kind of fault.

    Yields:
        New masks, none in which the label is lost; of a label without a neighbour some are sound.
    """
    spacing = np.asarray(spacing_mm)
    box = _box_with_room(mask == value)
    crop = mask[box]
    # All kinds in turn, for who stops in between.
    for _ in range(each):
        for change in KINDS:
            made = change(crop, value, spacing, rng)
            if (made == value).any():
                whole = mask.copy()
                whole[box] = made
                yield whole


def _box_with_room(region: Region) -> tuple[slice, slice, slice]:
    """The box around a region, and half its size more on each side."""
    sides = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        where = np.flatnonzero(region.any(axis=others))
        room = 2 + (int(where[-1]) - int(where[0])) // 2
        sides.append(slice(max(0, int(where[0]) - room), int(where[-1]) + room + 1))
    return sides[0], sides[1], sides[2]


def _size_mm(region: Region, spacing: Floats) -> float:
    """Cube root of the volume."""
    return float(np.cbrt(np.count_nonzero(region) * np.prod(spacing)))


def _direction(rng: Rng) -> Floats:
    drawn = rng.normal(size=3)
    return np.asarray(drawn / np.linalg.norm(drawn))


def _strength(rng: Rng) -> float:
    drawn = float(rng.uniform(_WEAKEST, 1.0))
    return drawn * float(np.sqrt(drawn))


def _with(crop: Mask, value: int, region: Region) -> Mask:
    """The crop, in which the label is this region."""
    made = np.where(crop == value, 0, crop).astype(crop.dtype)
    made[region] = value
    return made


def _shifted(region: Region, steps: Floats) -> Region:
    from scipy import ndimage

    return np.asarray(ndimage.shift(region.astype(np.float32), steps, order=1) > 0.5)


def _far_mm(region: Region, spacing: Floats) -> Floats:
    """Distance to the nearest voxel of a region."""
    from scipy import ndimage

    return np.asarray(ndimage.distance_transform_edt(~region, spacing))


def _moved(crop: Mask, value: int, spacing: Floats, rng: Rng) -> Mask:
    region = crop == value
    reach = _strength(rng) * _size_mm(region, spacing)
    return _with(crop, value, _shifted(region, _direction(rng) * reach / spacing))


def _cut(crop: Mask, value: int, spacing: Floats, rng: Rng) -> Mask:
    """One end is missing."""
    places = np.argwhere(crop == value)
    along = (places * spacing) @ _direction(rng)
    kept = places[along <= np.quantile(along, 1 - 0.9 * _strength(rng))]
    region = np.zeros(crop.shape, dtype=np.bool_)
    region[tuple(kept.T)] = True
    return _with(crop, value, region)


def _thin(region: Region, spacing: Floats, share: float) -> Region:
    depth_mm = _far_mm(~region, spacing)
    return np.asarray(depth_mm > np.quantile(depth_mm[region], share))


def _thinned(crop: Mask, value: int, spacing: Floats, rng: Rng) -> Mask:
    """The border is missing."""
    return _with(crop, value, _thin(crop == value, spacing, 0.9 * _strength(rng)))


def _swollen(crop: Mask, value: int, spacing: Floats, rng: Rng) -> Mask:
    """The border lies too far out."""
    region = crop == value
    reach_mm = 0.45 * _strength(rng) * _size_mm(region, spacing)
    return _with(crop, value, _far_mm(region, spacing) <= reach_mm)


def _spilt(crop: Mask, value: int, spacing: Floats, rng: Rng) -> Mask:
    """Parts of what lies beside belong to it, too: its own shadow in some direction."""
    region = crop == value
    made, steps = region.copy(), int(rng.integers(2, 5))
    way = _direction(rng) * _strength(rng) * 1.3 * _size_mm(region, spacing) / spacing
    thin = _thin(region, spacing, float(rng.uniform(0.2, 0.7)))
    for n in range(1, steps + 1):
        made |= _shifted(thin, way * n / steps)
    return _with(crop, value, made)


def _renamed(crop: Mask, value: int, spacing: Floats, rng: Rng) -> Mask:
    """What lies nearest to a neighbour bears its name, or the other way round."""
    other = _neighbour(crop, value, rng)
    taker, giver = (other, value) if rng.random() < 0.5 else (value, other)
    return np.where(_nearest(crop, giver, taker, spacing, rng), taker, crop).astype(crop.dtype)


def _exchanged(crop: Mask, value: int, spacing: Floats, rng: Rng) -> Mask:
    """What lies nearest to a neighbour bears its name, and the other way round."""
    other, made = _neighbour(crop, value, rng), crop.copy()
    made[_nearest(crop, value, other, spacing, rng)] = other
    made[_nearest(crop, other, value, spacing, rng)] = value
    return made


def _neighbour(crop: Mask, value: int, rng: Rng) -> int:
    """One of the labels in the crop; the label itself where it is alone."""
    others = [int(v) for v in np.unique(crop) if v not in (0, value)]
    return others[int(rng.integers(len(others)))] if others else value


def _nearest(crop: Mask, giver: int, taker: int, spacing: Floats, rng: Rng) -> Region:
    """The voxels of one label that lie nearest to another."""
    far_mm = _far_mm(crop == taker, spacing)
    reach_mm = np.quantile(far_mm[crop == giver], 0.8 * _strength(rng))
    return np.asarray((crop == giver) & (far_mm <= reach_mm))


#: Each takes a crop with room around a label, its value, the spacing and chance.
KINDS = (_moved, _cut, _thinned, _swollen, _spilt, _renamed, _exchanged)
