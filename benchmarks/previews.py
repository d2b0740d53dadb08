"""Previews a second on one core, of a scan with planes of 256 x 256 pixels and 24 labels.

``python benchmarks/previews.py`` draws one picture again and again: planes through all labels,
brightest, 3D view, and planes through each of the 24; PNG included, reading left out. There is
no peer that draws the same. ``--labels 4`` is a scan with few organs.
"""

from __future__ import annotations

import argparse

import numpy as np
from metrics import LABELS, phantom, timed

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.report.previews import draw_preview, png_of


def main() -> None:
    """Print previews a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--labels", type=int, default=LABELS)
    parser.add_argument("--tries", type=int, default=10)
    given = parser.parse_args()
    mask = np.ascontiguousarray(phantom(given.slices)[1][::2, ::2])
    mask[mask > given.labels] = 0
    rng = np.random.Generator(np.random.PCG64(0))
    voxels = (mask * 8.0 + rng.normal(0.0, 20.0, mask.shape)).astype(np.int16)
    geometry = Geometry(mask.shape, np.diag([1.6, 1.6, 2.5, 1.0]))
    labels = LabelSet.from_names({n: f"organ {n}" for n in range(1, given.labels + 1)})
    seconds, picture = timed(
        lambda: png_of(draw_preview(mask, geometry, labels, voxels=voxels)), given.tries
    )
    print(
        f"{mask.shape}, {given.labels} labels: {1 / seconds:.1f} previews a second "
        f"({seconds:.3f} s, PNG of {len(picture) / 1e6:.1f} MB)"  # type: ignore[arg-type]
    )


if __name__ == "__main__":
    main()
