"""Models of two stages: the labels of the first are channels of the second."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from medseg.core.plan import Plan
from medseg.inference.cascade import OneHotVolume
from medseg.inference.volume import TensorVolume
from medseg.transforms.earlier import onto_working_grid, outside_of
from medseg.workflows.segment import Prepared

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PreparedCascade(Prepared):
    """A scan as both stages take it.

    Attributes:
        earlier: For the first stage.
        outside: Where nothing was scanned, from ``transforms.earlier.outside_of``.
    """

    earlier: Prepared
    outside: NDArray[np.bool_] | None = None


def with_earlier(prepared: Prepared, earlier: Prepared, plan: Plan) -> PreparedCascade:
    """Both stages' preparation in one; the scan's voxels are still there.

    Args:
        prepared: For the second stage, without its labels.
        earlier: For the first stage, with a mask on the scan's own grid to come.
        plan: Of the second stage.
    """
    return PreparedCascade(
        prepared.scan, prepared.voxels, prepared.record, prepared.grid, prepared.facts,
        earlier=earlier, outside=outside_of(prepared.scan, plan, prepared.record),
    )  # fmt: skip


def with_labels(prepared: PreparedCascade, mask: NDArray[Any], plan: Plan) -> Prepared:
    """What the second stage's network takes: the scan, and what the first found in it.

    Args:
        prepared: From :func:`with_earlier`.
        mask: (I, J, K) values that the first stage gave, on the scan's own grid.
        plan: Of the second stage.
    """
    labels = onto_working_grid(
        mask, prepared.scan, plan, record=prepared.record, outside=prepared.outside
    )
    volume = TensorVolume(cast("Tensor", prepared.voxels))
    return replace(prepared, voxels=OneHotVolume(volume, labels, plan.cascade_labels))
