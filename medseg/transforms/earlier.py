"""The labels of a cascade's first stage, brought to the working grid of its second."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.core.geometry import Geometry
from medseg.core.plan import Plan
from medseg.core.scan import Scan
from medseg.transforms.normalise import filled_nonzero
from medseg.transforms.preprocess import (
    Placed,
    RestoreRecord,
    finite_voxels,
    made_regular,
    oriented,
    resampled_mask,
)


def outside_of(scan: Scan, plan: Plan, record: RestoreRecord) -> NDArray[np.bool_] | None:
    """Where nothing was scanned: zeros in every channel that reach the border.

    Background there is not that between organs; where labels are resampled the two do not
    vote together.

    Args:
        scan: With its voxels.
        plan: Of the second stage.
        record: From its preprocessing.

    Returns:
        (I, J, K) on ``record.oriented``, cut to ``record.crop``; None where the plan does not
        crop, or where there is no such place.
    """
    if record.crop is None:
        return None
    turned, _ = _turned(finite_voxels(scan), scan.geometry, plan)
    outside = ~filled_nonzero(turned[:, *record.crop]).numpy()
    return outside if outside.any() else None


def onto_working_grid(
    mask: NDArray[Any],
    scan: Scan,
    plan: Plan,
    *,
    record: RestoreRecord,
    outside: NDArray[np.bool_] | None,
) -> Tensor:
    """Mask values of the first stage on the working grid of the second.

    Args:
        mask: (I, J, K) on the scan's own grid.
        scan: For its geometry alone.
        plan: Of the second stage.
        record: From its preprocessing.
        outside: From :func:`outside_of`.

    Returns:
        (I, J, K) uint8 or int32 on ``record.working``; 0 where there is no label, and beyond
        the last label where nothing was scanned.
    """
    values = torch.from_numpy(mask.astype(np.int32))[None]
    data, geometry = _turned(values, scan.geometry, plan, nearest=True)
    if record.crop is not None:
        data, geometry = data[:, *record.crop], record.oriented.cut(record.crop)
    if outside is not None:
        nothing = torch.from_numpy(outside)[None] & (data == 0)
        data = torch.where(nothing, plan.cascade_labels + 1, data)
    done, _ = resampled_mask(data, geometry, spacing_mm=plan.spacing_mm, resampling=plan.resampling)
    return done[0].to(torch.uint8 if plan.cascade_labels < 255 else torch.int32)


def _turned(data: Tensor, geometry: Geometry, plan: Plan, *, nearest: bool = False) -> Placed:
    if plan.orientation == "ras":
        data, geometry = made_regular(data, geometry, nearest=nearest)
    return oriented(data, geometry, kind=plan.orientation, axis_order=plan.axis_order)
