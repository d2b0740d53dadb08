"""What a mask says about each structure: where it lies, how large it is, how many parts it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from medseg.core.geometry import Geometry
from medseg.postprocess.components import label_components

# A part is tiny when it is this much smaller than the largest part of its label ...
_TINY_SHARE = 0.02
# ... and has no more voxels than this.
_TINY_VOXELS = 30
_SAMPLES = 1_000_000


@dataclass(frozen=True)
class LabelFacts:
    """One label of one case.

    Attributes:
        voxels: How many.
        volume_ml: Their volume.
        place: Centroid along R, A and S, as shares (0 to 1) of the field of view.
        parts: Connected regions (26 neighbours).
        tiny_parts: Those that are tiny beside the largest.
        tiny_voxels: Voxels of the tiny parts together.
        contrast: Mean intensity inside, in standard deviations from the scan's mean; NaN
            where there is no scan to compare with.
    """

    voxels: int
    volume_ml: float
    place: tuple[float, float, float]
    parts: int
    tiny_parts: int
    tiny_voxels: int
    contrast: float


def label_facts(
    mask: NDArray[Any], geometry: Geometry, voxels: NDArray[Any] | None
) -> dict[int, LabelFacts]:
    """Facts of each label in a mask.

    Args:
        mask: (I, J, K) integers, 0 is background.
        geometry: Its grid.
        voxels: (C, I, J, K) scan on the same grid, whose first channel is compared; or None.
    """
    if not mask.any():
        return {}
    turn = geometry.orientation_to_ras()
    whole_ras = turn.apply(mask)
    box = _filled_box(whole_ras)
    low = np.array([side.start for side in box], dtype=np.float64)
    ras = np.asfortranarray(whole_ras[box], dtype=np.uint16)
    seen = cc3d.statistics(ras, no_slice_conversion=True)
    counts, centres = seen["voxel_counts"], seen["centroids"]
    values = [int(v) for v in np.flatnonzero(counts) if v]
    parts = dict.fromkeys(values, (0, 0, 0)) | _parts(ras)
    contrast = _contrasts(mask, voxels)
    size = np.asarray(whole_ras.shape, dtype=np.float64)
    found = {}
    for value in values:
        x, y, z = ((low + centres[value] + 0.5) / size).tolist()
        whole, tiny, tiny_voxels = parts[value]
        found[value] = LabelFacts(
            voxels=int(counts[value]),
            volume_ml=float(counts[value]) * geometry.voxel_volume_mm3 / 1000.0,
            place=(x, y, z),
            parts=whole,
            tiny_parts=tiny,
            tiny_voxels=tiny_voxels,
            contrast=contrast.get(value, float("nan")),
        )
    return found


def _filled_box(mask: NDArray[Any]) -> tuple[slice, slice, slice]:
    """The smallest box that holds all that is not 0, of a mask that has such voxels."""
    filled = mask != 0
    sides = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        where = np.flatnonzero(filled.any(axis=others))
        sides.append(slice(int(where[0]), int(where[-1]) + 1))
    return sides[0], sides[1], sides[2]


def tiny_parts(mask: NDArray[Any], values: tuple[int, ...]) -> NDArray[np.bool_]:
    """Voxels (I, J, K) of the tiny parts of some labels."""
    components, sizes, value_of = _components(mask)
    tiny = _is_tiny(sizes, value_of) & np.isin(value_of, values)
    return np.asarray(tiny[components], dtype=np.bool_)


def _parts(mask: NDArray[Any]) -> dict[int, tuple[int, int, int]]:
    """Parts, tiny parts and voxels of these, by label."""
    _, sizes, value_of = _components(mask)
    tiny = _is_tiny(sizes, value_of)
    found = {}
    for value in np.unique(value_of[1:]):
        own = np.flatnonzero(value_of == value)
        small = own[tiny[own]]
        found[int(value)] = len(own), len(small), int(sizes[small].sum())
    return found


def _components(mask: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Components (I, J, K), voxels of each, and the label that each belongs to."""
    components, count = label_components(mask)
    sizes = cc3d.statistics(components, no_slice_conversion=True)["voxel_counts"][: count + 1]
    value_of = np.zeros(count + 1, dtype=mask.dtype)
    value_of[components] = mask
    return components, np.asarray(sizes), value_of


def _is_tiny(sizes: NDArray[Any], value_of: NDArray[Any]) -> NDArray[np.bool_]:
    largest = np.zeros(int(value_of.max(initial=0)) + 1)
    np.maximum.at(largest, value_of, np.where(value_of > 0, sizes, 0))
    tiny = (sizes <= _TINY_SHARE * largest[value_of]) & (sizes <= _TINY_VOXELS) & (value_of > 0)
    return np.asarray(tiny, dtype=np.bool_)


def _contrasts(mask: NDArray[Any], voxels: NDArray[Any] | None) -> dict[int, float]:
    """Mean intensity inside each label, in standard deviations from the scan's mean.

    Args:
        mask: (I, J, K) integers.
        voxels: (C, I, J, K), of which the first channel counts; None gives nothing.
    """
    if voxels is None:
        return {}
    image = voxels[0].ravel(order="F")
    some = image[:: max(1, image.size // _SAMPLES)].astype(np.float64)
    spread = float(some.std())
    if not spread:
        return {}
    flat = mask.ravel(order="F")
    where = np.flatnonzero(flat)
    labels = flat[where]
    counts = np.bincount(labels)
    sums = np.bincount(labels, weights=image[where])
    middle = float(some.mean())
    return {int(v): (float(sums[v] / counts[v]) - middle) / spread for v in np.flatnonzero(counts)}
