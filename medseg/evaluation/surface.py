"""Distances between the surfaces of two masks, in millimetres, by two definitions.

*voxel-border*: the surface is the set of voxels with at least one face neighbour outside
the mask, each at its centre with weight one (T. Heimann et al., "Comparison and evaluation
of methods for liver segmentation from CT datasets", 2009; MONAI and MedPy do the same).

*surface-element*: the surface lies between the voxels, at the corners of the voxel grid
around which some voxels are inside and some outside, each with the area that marching cubes
puts there (S. Nikolov et al., "Deep learning to achieve clinically applicable segmentation
of head and neck anatomy for radiotherapy", 2018; the package surface-distance does the same).

For both, what lies beyond the edge of the image is outside. In a 2D image (I, J, 1) the
border is that of the pixels in the plane, and elements have a length. Distances run along
the voxel axes, from ``spacing_mm``; on a sheared grid they are those of the grid made straight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.elements import element_sizes
from medseg.evaluation.masks import Masks, as_masks, check_shapes, union_of
from medseg.evaluation.nearest import nearest_distances

Definition = Literal["voxel-border", "surface-element"]
DEFINITION: Definition = "voxel-border"
"""The surface that is measured where no other is asked for."""
# Spacings are often decimal fractions stored as float32, so that a distance of exactly the
# tolerance comes out a few last bits above it.
_TOLERANCE_SLACK = 1 + 1e-6


@dataclass(frozen=True)
class SurfaceDistances:
    """How far each element of one surface lies from the other surface.

    Attributes:
        to_reference_mm: (P,) one distance per element of the prediction's surface.
        to_prediction_mm: (R,) one distance per element of the reference's surface.
        prediction_sizes: (P,) area (mm2) or length (mm) of the elements; None: all count alike.
        reference_sizes: (R,) the same for the reference.
    """

    to_reference_mm: NDArray[np.float64]
    to_prediction_mm: NDArray[np.float64]
    prediction_sizes: NDArray[np.float64] | None = None
    reference_sizes: NDArray[np.float64] | None = None


def surface_distances(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    *,
    spacing_mm: Sequence[float],
    definition: Definition = DEFINITION,
) -> SurfaceDistances | None:
    """Measure the distances between the surfaces of two masks, in both directions.

    Args:
        prediction: (I, J, K) boolean.
        reference: (I, J, K) boolean.
        spacing_mm: Voxel size along I, J, K.
        definition: What the surface is.

    Returns:
        The distances, or None when a mask is empty: there is no surface then.

    Raises:
        GeometryError: The shapes differ.
    """
    check_shapes(prediction.shape, reference.shape)
    if not (prediction.any() and reference.any()):
        return None
    axes = wide_axes(prediction.shape)
    return crop_distances(
        prediction, reference, spacing_mm=spacing_mm, axes=axes, definition=definition
    )


def label_surface_distances(
    prediction: NDArray[Any] | Masks,
    reference: NDArray[Any] | Masks,
    values: Sequence[int],
    *,
    spacing_mm: Sequence[float],
    definition: Definition = DEFINITION,
) -> Iterator[tuple[int, SurfaceDistances | None]]:
    """Measure each label of two label masks, on a crop to the box around it.

    Args:
        prediction: (I, J, K) integers, or layers.
        reference: (I, J, K) integers, or layers.
        values: The labels to measure, each above 0.
        spacing_mm: Voxel size along I, J, K.
        definition: What the surface is.

    Yields:
        The label value with its distances, None where a mask lacks the label.

    Raises:
        GeometryError: The shapes differ.
    """
    both = as_masks(prediction), as_masks(reference)
    check_shapes(both[0].shape, both[1].shape)
    boxes = [masks.boxes(values) for masks in both]
    for value in values:
        first, second = boxes[0].get(value), boxes[1].get(value)
        if first is None or second is None:
            yield value, None
            continue
        box = union_of(first, second)
        # A crop may be one voxel thin where the image is not: the axes are the image's.
        axes = wide_axes(both[0].shape)
        crops = [masks.crop(value, box) for masks in both]
        yield value, crop_distances(*crops, spacing_mm=spacing_mm, axes=axes, definition=definition)


def wide_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which a surface can run: an axis of one voxel is that of a flat image."""
    return tuple(axis for axis, size in enumerate(shape) if size > 1)


def crop_distances(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    *,
    spacing_mm: Sequence[float],
    axes: tuple[int, ...],
    definition: Definition,
) -> SurfaceDistances:
    """Measure two masks that are not empty, cut from an image that extends along ``axes``."""
    shape = [prediction.shape[axis] for axis in axes]
    steps_mm = tuple(float(spacing_mm[axis]) for axis in axes)
    masks = [mask.reshape(shape) for mask in (prediction, reference)]
    if definition == "voxel-border":
        borders = [border(mask) for mask in masks]
        return SurfaceDistances(
            nearest_distances(borders[0], borders[1], spacing_mm=steps_mm),
            nearest_distances(borders[1], borders[0], spacing_mm=steps_mm),
        )
    codes = [_cell_codes(mask) for mask in masks]
    sizes = element_sizes(steps_mm)
    there = (sizes > 0)[codes[0]], (sizes > 0)[codes[1]]
    return SurfaceDistances(
        nearest_distances(there[0], there[1], spacing_mm=steps_mm),
        nearest_distances(there[1], there[0], spacing_mm=steps_mm),
        sizes[codes[0][there[0]]],
        sizes[codes[1][there[1]]],
    )


def hd(distances: SurfaceDistances) -> float:
    """Hausdorff distance in mm: the farthest that one surface is from the other (also MSSD)."""
    return float(max(distances.to_reference_mm.max(), distances.to_prediction_mm.max()))


def hd95(distances: SurfaceDistances) -> float:
    """95 % Hausdorff distance in mm: the larger of the two directed 95th percentiles.

    Where elements count alike the percentile is interpolated linearly; else it is the
    distance within which 95 % of the area lies. Some tools pool both directions before they
    take the percentile; that figure is never larger than this one.
    """
    return max(
        _percentile95(distances.to_reference_mm, distances.prediction_sizes),
        _percentile95(distances.to_prediction_mm, distances.reference_sizes),
    )


def assd(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance in mm: the mean over both surfaces together.

    T. Heimann et al., 2009. Some tools average the two directed means instead, which gives
    the smaller surface more weight.
    """
    total, size = 0.0, 0.0
    for found_mm, sizes in _both(distances):
        total += float(found_mm.sum() if sizes is None else found_mm @ sizes)
        size += float(found_mm.size if sizes is None else sizes.sum())
    return total / size


def nsd(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Normalised surface Dice: the share of both surfaces within the tolerance of the other.

    S. Nikolov et al., 2018.
    """
    within, size = 0.0, 0.0
    for found_mm, sizes in _both(distances):
        close = found_mm <= tolerance_mm * _TOLERANCE_SLACK
        within += float(np.count_nonzero(close) if sizes is None else sizes[close].sum())
        size += float(found_mm.size if sizes is None else sizes.sum())
    return min(1.0, within / size)


def border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels of the mask with a face neighbour outside it, looking along all axes."""
    if mask.ndim == 0:
        # An image of a single voxel has no axis to look along; the voxel is its own border.
        return mask.copy()
    inner = mask.copy()
    for axis in range(mask.ndim):
        inside, source = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        inside[1:] &= source[:-1]
        inside[:-1] &= source[1:]
        inside[0] = False
        inside[-1] = False
    return mask & ~inner


def _cell_codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Which corners of each cell between voxels are inside, one cell more than voxels an axis."""
    codes = np.pad(mask, 1).view(np.uint8)
    for axis in range(mask.ndim):
        low, high = np.moveaxis(codes, axis, 0)[:-1], np.moveaxis(codes, axis, 0)[1:]
        codes = np.moveaxis(low | (high << np.uint8(1 << axis)), 0, axis)
    return np.ascontiguousarray(codes)


def _both(
    distances: SurfaceDistances,
) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64] | None], ...]:
    return (
        (distances.to_reference_mm, distances.prediction_sizes),
        (distances.to_prediction_mm, distances.reference_sizes),
    )


def _percentile95(found_mm: NDArray[np.float64], sizes: NDArray[np.float64] | None) -> float:
    if sizes is None:
        return float(np.percentile(found_mm, 95))
    order = np.argsort(found_mm, kind="stable")
    share = np.cumsum(sizes[order])
    place = int(np.searchsorted(share / share[-1], 0.95))
    return float(found_mm[order[min(place, len(order) - 1)]])
