"""From the network's grid back to the scan's own, slab by slab.

Interpolating the logits and taking the argmax of one slab at a time needs no copy of all
classes at full size: several times faster than resampling every class first, and flat in
memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medseg.transforms.preprocess import RestoreRecord
from medseg.transforms.resample import interpolate_rows, sample_rows

_SLAB_VALUES = 8_000_000


def restore_classes(logits: Tensor, record: RestoreRecord) -> NDArray[Any]:
    """Class indices on the scan's own grid.

    Args:
        logits: (classes, I, J, K) on ``record.working``.
        record: From ``preprocess_scan``.

    Returns:
        (I, J, K) uint8 (uint16 above 256 classes) on ``record.target``, contiguous.
    """
    last = None if record.slices is None else record.slices.places_k
    regular = record.original.is_regular and last is None
    shape = record.oriented.shape if regular else record.target.shape
    classes = logits.shape[0]
    matrix = np.linalg.solve(record.working.affine_ras, record.original.affine_ras)
    result = np.empty(shape, dtype=np.uint8 if classes <= 256 else np.uint16)
    rows = max(1, _SLAB_VALUES // (classes * shape[1] * shape[2]))
    for start in range(0, shape[0], rows):
        part = slice(start, min(start + rows, shape[0]))
        if regular:
            slab = interpolate_rows(logits, part, shape)
        else:
            slab = sample_rows(logits, matrix, shape, rows=part, fill=None, last=last)
        result[part] = slab.argmax(dim=0).cpu().numpy()
    if not regular:
        return result
    return np.ascontiguousarray(record.orientation.inverse().apply(result))
