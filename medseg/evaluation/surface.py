"""Distances between the surfaces of two masks: HD95 and normalised surface Dice.

The definition here is the *voxel border*: the surface of a mask is the set of its voxels
that have at least one face neighbour outside it, each with weight one, at its centre; what
lies beyond the edge of the image counts as outside. In a 2D image (I, J, 1) the border is
that of the pixels in the plane. Distances are in millimetres along the voxel axes, from
``spacing_mm``; on a sheared grid they are those of the grid made straight.

Other tools weight each surface element by its area; the figures then differ. See
L. Maier-Hein et al., "Metrics reloaded", Nature Methods 2024, and A. Reinke et al.,
"Understanding metric-related pitfalls", Nature Methods 2024.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from medseg.core.errors import GeometryError

DEFINITION = "voxel-border"
"""Name of the surface definition, written beside every figure that depends on it."""

Box = tuple[slice, ...]


@dataclass(frozen=True)
class SurfaceDistances:
    """How far each border voxel of one mask lies from the border of the other.

    Attributes:
        to_reference_mm: (P,) one distance per border voxel of the prediction.
        to_prediction_mm: (R,) one distance per border voxel of the reference.
    """

    to_reference_mm: NDArray[np.float64]
    to_prediction_mm: NDArray[np.float64]


def surface_distances(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    *,
    spacing_mm: Sequence[float],
) -> SurfaceDistances | None:
    """Measure the distances between the voxel borders of two masks, in both directions.

    The nearest border voxel is found with a k-d tree, which is exact, and on organs ten
    times faster than a distance transform of the box around them.

    Args:
        prediction: (I, J, K) boolean.
        reference: (I, J, K) boolean.
        spacing_mm: Voxel size along I, J, K.

    Returns:
        The distances, or None when a mask is empty: there is no surface then.

    Raises:
        GeometryError: The shapes differ.
    """
    _check_shapes(prediction, reference)
    return _distances(prediction, reference, spacing_mm, axes=_wide_axes(prediction.shape))


def label_surface_distances(
    prediction: NDArray[Any],
    reference: NDArray[Any],
    values: Sequence[int],
    *,
    spacing_mm: Sequence[float],
) -> Iterator[tuple[int, SurfaceDistances | None]]:
    """Measure each label of two label masks, on a crop to the box around it.

    Args:
        prediction: (I, J, K) integers.
        reference: (I, J, K) integers.
        values: The labels to measure, each above 0.
        spacing_mm: Voxel size along I, J, K.

    Yields:
        The label value with its distances, None where a mask lacks the label.

    Raises:
        GeometryError: The shapes differ.
    """
    _check_shapes(prediction, reference)
    axes = _wide_axes(prediction.shape)
    boxes = [_boxes(mask, max(values, default=0)) for mask in (prediction, reference)]
    for value in values:
        first, second = boxes[0].get(value), boxes[1].get(value)
        if first is None or second is None:
            yield value, None
            continue
        box = _union(first, second)
        # A crop may be one voxel thin where the image is not: the axes are the image's.
        yield (
            value,
            _distances(prediction[box] == value, reference[box] == value, spacing_mm, axes=axes),
        )


def hd95(distances: SurfaceDistances) -> float:
    """95 % Hausdorff distance in mm: the larger of the two directed 95th percentiles.

    The percentile is interpolated linearly. Some tools pool both directions before they
    take the percentile; that figure is never larger than this one.
    """
    return float(
        max(
            np.percentile(distances.to_reference_mm, 95),
            np.percentile(distances.to_prediction_mm, 95),
        )
    )


def nsd(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Normalised surface Dice: the share of both borders within the tolerance of the other.

    S. Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head
    and neck anatomy for radiotherapy", 2018; here with the voxel border as the surface.
    """
    both = np.concatenate([distances.to_reference_mm, distances.to_prediction_mm])
    # Spacings are often decimal fractions stored as float32, so that a distance of exactly
    # the tolerance comes out a few last bits above it.
    return float(np.mean(both <= tolerance_mm * (1 + 1e-6)))


def _distances(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    *,
    axes: tuple[int, ...],
) -> SurfaceDistances | None:
    points = [
        np.argwhere(_border(mask, axes)) * np.asarray(spacing_mm, dtype=np.float64)
        for mask in (prediction, reference)
    ]
    if not (len(points[0]) and len(points[1])):
        return None
    return SurfaceDistances(
        to_reference_mm=np.asarray(KDTree(points[1]).query(points[0])[0]),
        to_prediction_mm=np.asarray(KDTree(points[0]).query(points[1])[0]),
    )


def _wide_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which a border can run: an axis of one voxel is that of a flat image."""
    return tuple(axis for axis, size in enumerate(shape) if size > 1)


def _border(mask: NDArray[np.bool_], axes: tuple[int, ...]) -> NDArray[np.bool_]:
    """Voxels of the mask with a face neighbour outside it, looking along the given axes."""
    inner = mask.copy()
    for axis in axes:
        inside, source = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        inside[1:] &= source[:-1]
        inside[:-1] &= source[1:]
        inside[0] = False
        inside[-1] = False
    # An image of a single voxel has no axis to look along; the voxel is its own border.
    return mask & ~inner if axes else mask


def _boxes(mask: NDArray[Any], top: int) -> dict[int, Box]:
    """The box around each label from 1 to ``top`` that occurs."""
    # Values above the wanted ones would wrap around in the conversion to int32.
    kept = mask if mask.max(initial=0) <= top else np.where(mask <= top, mask, 0)
    found = ndimage.find_objects(kept.astype(np.int32, copy=False), max_label=top)
    return {value: box for value, box in enumerate(found, start=1) if box is not None}


def _union(first: Box, second: Box) -> Box:
    """The box around two boxes."""
    return tuple(
        slice(min(a.start, b.start), max(a.stop, b.stop))
        for a, b in zip(first, second, strict=True)
    )


def _check_shapes(prediction: NDArray[Any], reference: NDArray[Any]) -> None:
    if prediction.shape != reference.shape:
        raise GeometryError(
            "masks to compare", expected=f"shape {reference.shape}", got=str(prediction.shape)
        )
