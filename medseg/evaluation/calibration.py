"""How far probabilities can be believed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.core.errors import InputError
from medseg.evaluation.masks import check_shapes

_CHUNK_VOXELS = 1 << 20


def expected_calibration_error(
    probabilities: NDArray[Any], reference: NDArray[Any], *, bins: int = 15
) -> float:
    """Mean gap between how sure the model was and how often it was right, over all voxels.

    The sureness of a voxel is its largest probability; voxels are binned by it in bins of
    equal width, and the gaps weighted by the voxels in a bin. C. Guo et al., "On calibration
    of modern neural networks", 2017.

    Args:
        probabilities: (C, I, J, K), from 0 to 1, background first; or (1, I, J, K) of the
            one label that there is.
        reference: (I, J, K) class indices: 0 for background, n for channel n.
        bins: How many.

    Raises:
        GeometryError: The grids differ.
        InputError: There are values outside 0 to 1, or NaN.
    """
    check_shapes(probabilities.shape[1:], reference.shape)
    if not 0 <= float(probabilities.min()) <= float(probabilities.max()) <= 1 + 1e-3:
        raise InputError(
            "probabilities", expected="0 to 1",
            got=f"{float(probabilities.min()):g} to {float(probabilities.max()):g}",
            cure="Give probabilities, not logits.",
        )  # fmt: skip
    table = probabilities.reshape(len(probabilities), -1)
    truth = reference.reshape(-1)
    sums = np.zeros((3, bins))
    for start in range(0, truth.size, _CHUNK_VOXELS):
        part = table[:, start : start + _CHUNK_VOXELS].astype(np.float64)
        if len(part) == 1:
            part = np.concatenate([1 - part, part])
        chosen = part.argmax(axis=0)
        sure = np.clip(np.take_along_axis(part, chosen[None], axis=0)[0], 0.0, 1.0)
        right = chosen == truth[start : start + _CHUNK_VOXELS]
        # A bin holds its upper edge.
        place = np.clip(np.ceil(sure * bins).astype(np.intp) - 1, 0, bins - 1)
        for row, weights in enumerate((None, sure, right.astype(np.float64))):
            sums[row] += np.bincount(place, weights=weights, minlength=bins)
    return float(np.abs(sums[1] - sums[2]).sum() / truth.size)
