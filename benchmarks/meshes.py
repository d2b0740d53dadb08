"""Meshes of 24 organs: medseg against scikit-image's marching cubes per label, in one run.

``python benchmarks/meshes.py`` makes a mask of 512 x 512 x 200 voxels, and times the peer on
the whole volume of each label, as a plain loop over the labels has it, and on the box around
each. medseg gives smooth surfaces of the labels' very volumes; the peer gives the raw ones.
``--slices 50`` is a quick look. Needs ``pip install scikit-image``.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
from metrics import LABELS, SPACING_MM, Mask, phantom, timed
from scipy import ndimage
from skimage.measure import marching_cubes

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.results import Mesh
from medseg.postprocess.surfaces import MeshOptions, meshes

Surface = tuple[np.ndarray, np.ndarray]


def ours(mask: Mask, workers: int) -> list[Mesh]:
    """All labels."""
    labels = LabelSet.from_names({value: str(value) for value in range(1, LABELS + 1)})
    geometry = Geometry(mask.shape, np.diag([*SPACING_MM, 1.0]))
    return meshes(mask, geometry, labels, options=MeshOptions(workers=workers))


def whole(mask: Mask) -> list[Surface]:
    """The peer on the whole volume of each label; one more voxel around closes it."""
    padded = np.pad(mask, 1)
    return [
        marching_cubes(padded == value, 0.5, spacing=SPACING_MM)[:2]
        for value in range(1, LABELS + 1)
    ]


def cropped(mask: Mask) -> list[Surface]:
    """The peer on the box around each label."""
    return [
        marching_cubes(np.pad(mask[box] == value, 1), 0.5, spacing=SPACING_MM)[:2]
        for value, box in enumerate(ndimage.find_objects(mask), start=1)
    ]


def volume(surface: Surface) -> float:
    """What a surface of the peer encloses, mm3."""
    a, b, c = (surface[0][surface[1][:, corner]].astype(np.float64) for corner in range(3))
    return abs(float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6))


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--tries", type=int, default=1, help="of the peer; medseg gets 2 more")
    given = parser.parse_args()
    mask = phantom(given.slices)[1]
    cores = os.cpu_count() or 1
    voxel_mm3 = float(np.prod(SPACING_MM))
    counts = np.bincount(mask.ravel(), minlength=LABELS + 1)[1:] * voxel_mm3
    for workers in sorted({1, cores}):
        seconds, found = timed(lambda workers=workers: ours(mask, workers), given.tries + 2)
        off = max(abs(m.volume_mm3 / counts[m.label.value - 1] - 1) for m in found)
        triangles = sum(len(m.faces) for m in found)
        print(
            f"medseg, {workers} threads: {seconds:.2f} s, {triangles} triangles, "
            f"volumes off by up to {off:.1e}"
        )
    for name, work in (("whole volume", whole), ("box of each label", cropped)):
        theirs, surfaces = timed(lambda work=work: work(mask), given.tries)
        off = max(abs(volume(s) / counts[n] - 1) for n, s in enumerate(surfaces))
        print(
            f"scikit-image, {name}: {theirs:.2f} s, {theirs / seconds:.1f}x; "
            f"volumes off by up to {off:.1e}"
        )


if __name__ == "__main__":
    main()
