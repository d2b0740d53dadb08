"""A grid that several models share: the scan is brought to it once, and labels back from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.core.plan import AxisResampling, Order, ResamplingPlan
from medseg.core.scan import Scan
from medseg.transforms.lines import Line
from medseg.transforms.preprocess import (
    RestoreRecord,
    finite_voxels,
    made_regular,
    oriented,
    resampled,
)
from medseg.transforms.resample import sample_rows
from medseg.transforms.restore import is_axis_parallel

_SLAB_VOXELS = 1 << 23


def onto_shared_grid(
    scan: Scan, spacing_mm: tuple[float, float, float], *, order: Order
) -> tuple[Scan, RestoreRecord]:
    """Bring a scan to a spacing in RAS+, with its intensities as they are.

    Args:
        scan: Any.
        spacing_mm: Along right, anterior, superior.
        order: 0 nearest, 1 linear, 3 cubic.

    Returns:
        The scan there, in memory (float32), and the way back.

    Raises:
        FileError: The scan cannot be read, or holds NaN or infinity.
    """
    resampling = ResamplingPlan(image=AxisResampling(order=order))
    data, geometry = made_regular(finite_voxels(scan), scan.geometry)
    data, geometry = oriented(data, geometry)
    data, geometry = resampled(data, geometry, spacing_mm=spacing_mm, resampling=resampling)
    voxels = data.numpy()
    there = Scan(
        geometry, scan.channels, lambda: voxels, modality=scan.modality, source=scan.source
    )
    return there, RestoreRecord.of(scan.geometry, spacing_mm)


def labels_from_shared_grid(labels: NDArray[Any], record: RestoreRecord) -> NDArray[Any]:
    """Labels on the shared grid to the scan's own, each voxel from the nearest.

    Args:
        labels: (I, J, K) whole numbers on ``record.working``.
        record: From :func:`onto_shared_grid`; ``onto_cover`` and ``onto_slices`` count.

    Returns:
        (I, J, K) of the same type on ``record.target``.
    """
    if not is_axis_parallel(record) or record.slices is not None:
        return _sampled(labels, record)
    lines = [
        Line.between(old, new, nearest=True).below
        for old, new in zip(record.working.shape, record.oriented.shape, strict=True)
    ]
    return np.ascontiguousarray(record.orientation.inverse().apply(labels[np.ix_(*lines)]))


def _sampled(labels: NDArray[Any], record: RestoreRecord) -> NDArray[Any]:
    target = record.target
    matrix = np.linalg.solve(record.working.affine_ras, record.original.affine_ras)
    last = None if record.slices is None else record.slices.places_k
    # Whole numbers of masks are exact in float32.
    volume = torch.from_numpy(labels.astype(np.float32))[None]
    found = np.empty(target.shape, labels.dtype)
    depth = max(1, _SLAB_VOXELS // (target.shape[1] * target.shape[2]))
    for start in range(0, target.shape[0], depth):
        rows = slice(start, min(start + depth, target.shape[0]))
        slab = sample_rows(
            volume, matrix, target.shape, rows=rows, nearest=True, fill=None, last=last
        )
        found[rows] = slab[0].numpy().astype(labels.dtype)
    return found
