"""The labels of a cascade's first stage, brought to the working grid of its second."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.core.plan import Plan
from medseg.core.scan import Scan
from medseg.transforms.load import LoadScan, with_geometry
from medseg.transforms.normalise import filled_nonzero
from medseg.transforms.preprocess import (
    MakeRegular,
    Orient,
    ResampleMaskToSpacing,
    RestoreRecord,
    Steps,
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
    turned = _turn(plan)(LoadScan()(scan)).as_tensor()
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
    data = _turn(plan, nearest=True)(with_geometry(values, scan.geometry))
    if record.crop is not None:
        data = with_geometry(data.as_tensor()[:, *record.crop], record.oriented.cut(record.crop))
    if outside is not None:
        nothing = torch.from_numpy(outside)[None] & (data.as_tensor() == 0)
        data = torch.where(nothing, plan.cascade_labels + 1, data)
    done = ResampleMaskToSpacing(plan.spacing_mm, resampling=plan.resampling)(data)
    small = plan.cascade_labels < 255
    labels: Tensor = done.as_tensor()[0].to(torch.uint8 if small else torch.int32)
    return labels


def _turn(plan: Plan, *, nearest: bool = False) -> Steps:
    bend = [MakeRegular(nearest=nearest)] if plan.orientation == "ras" else []
    return Steps([*bend, Orient(plan.orientation, plan.axis_order)])
