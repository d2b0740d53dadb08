"""Outlines of labels, slice by slice, in any of the three planes, and back to masks.

Marching squares at one half (contourpy): an outline passes midway between a pixel inside and
its neighbour outside, and cuts the corners, so that every pixel centre stays on its side.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

from medseg.core.errors import SettingsError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.results import Contours, Region
from medseg.io.rtstruct import fill
from medseg.postprocess.surfaces import Box, check_mask, label_boxes

_NORMALS = {"sagittal": 0, "coronal": 1, "axial": 2}


def contours(
    mask: NDArray[Any], geometry: Geometry, labels: LabelSet, *, plane: str = "axial"
) -> Contours:
    """The outlines of each label that occurs, with holes.

    Args:
        mask: (I, J, K) integers; 0 is background.
        geometry: Its grid.
        labels: Which values are wanted, in this order.
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``: of an oblique grid the slices
            that lie closest to it.

    Raises:
        InputError: The mask is not (I, J, K) integers.
        SettingsError: There is no such plane.
    """
    check_mask(mask, geometry)
    axis = plane_axis(geometry, plane)
    boxes = label_boxes(mask, labels.values)
    regions = [
        region
        for label in labels.labels
        if label.value in boxes
        for region in _regions(mask, label.value, boxes[label.value], axis=axis)
    ]
    return Contours(geometry, labels, axis, tuple(regions))


def plane_axis(geometry: Geometry, plane: str) -> int:
    """The axis of the grid that slices of a plane are cut across; of one slice always that.

    Raises:
        SettingsError: There is no such plane.
    """
    if plane not in _NORMALS:
        raise SettingsError("plane", expected=", ".join(_NORMALS), got=repr(plane))
    flat = [axis for axis in range(3) if geometry.shape[axis] == 1]
    if len(flat) == 1:
        return flat[0]
    return geometry.orientation_to_ras().axes[_NORMALS[plane]]


def rasterise(found: Contours) -> NDArray[Any]:
    """The mask (I, J, K) whose pixel centres lie inside outlines and outside their holes.

    A later label paints over an earlier one.
    """
    geometry, axis = found.geometry, found.axis
    mask = np.zeros(geometry.shape, dtype=found.label_set.dtype)
    slices = np.moveaxis(mask, axis, 0)
    for region in found.regions:
        rings = [np.delete(ring, axis, axis=1) for ring in region.rings]
        low = np.maximum(np.floor(rings[0].min(axis=0)).astype(int), 0)
        high = np.minimum(np.ceil(rings[0].max(axis=0)).astype(int) + 1, slices.shape[1:])
        part = slices[region.slice_index, low[0] : high[0], low[1] : high[1]]
        part[fill((ring - low for ring in rings), part.shape)] = region.value
    return mask


def _regions(mask: NDArray[Any], value: int, box: Box, *, axis: int) -> Iterator[Region]:
    # One more pixel around closes the outline where the label touches the edge.
    inside = np.moveaxis(mask[box] == value, axis, 0)
    across, down = (other for other in range(3) if other != axis)
    start = box[across].start, box[down].start
    for number, flat in enumerate(inside):
        if not flat.any():
            continue
        pixels = np.pad(flat, 1).astype(np.float32)
        made = contour_generator(z=pixels, name="serial", fill_type=FillType.OuterOffset).filled(
            0.5, 2.0
        )
        at = box[axis].start + number
        for points, offsets in zip(*made, strict=True):
            rings = []
            for first, last in pairwise(offsets):
                # The last corner repeats the first; x of contourpy runs along the second axis.
                ring = np.empty((int(last) - int(first) - 1, 3))
                ring[:, axis] = at
                ring[:, across] = points[first : last - 1, 1] - 1 + start[0]
                ring[:, down] = points[first : last - 1, 0] - 1 + start[1]
                rings.append(ring)
            yield Region(value, at, tuple(rings))
