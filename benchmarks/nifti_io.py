"""Reading a scan and writing a mask as .nii.gz: medseg against nibabel's default, in one run.

``python benchmarks/nifti_io.py`` makes a CT-like volume and an organ mask of 512 x 512 x 300
voxels in a temporary folder and prints both ratios; ``--slices 60`` is a quick look.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.core.results import Prediction
from medseg.io.formats import read_scan, write_mask

ORGANS = 24
AFFINE = np.array([[-0.8, 0, 0, 204.0], [0, -0.8, 0, 190.0], [0, 0, 1.5, -310.0], [0, 0, 0, 1]])


def phantom(slices: int, seed: int = 0) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """A body in air with organs, vessels and grainy noise (HU), and the mask of its organs."""
    rng = np.random.Generator(np.random.PCG64(seed))
    shape = (512, 512, slices)
    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    grid = (x[:, None, None], y[None, :, None], z[None, None, :])
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 0.7)
    scan = noise * (14.0 / float(noise.std()))
    body = (grid[0] / 0.85) ** 2 + (grid[1] / 0.65) ** 2 < 1.0
    scan += np.where(body, 45.0, -1000.0)
    mask = np.zeros(shape, np.uint8)
    # One bumpy field for all organs: every surface gets its own bumps from it.
    bumps = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 2.0)
    bumps /= bumps.std()
    for organ in range(1, ORGANS + 1):
        centre, radius = rng.uniform(-0.5, 0.5, 3), rng.uniform(0.08, 0.35, 3)
        away = sum(((grid[axis] - centre[axis]) / radius[axis]) ** 2 for axis in range(3))
        inside = away + 0.1 * bumps < 1.0
        mask[inside] = organ
        scan[inside] += rng.uniform(-60.0, 120.0)
    return np.round(scan).astype(np.int16), mask


def race(
    theirs: Callable[[], object], ours: Callable[[], object], tries: int
) -> tuple[float, float]:
    """Seconds of the quickest try of each; by turns, so that both meet the same load."""
    best = [float("inf"), float("inf")]
    for _ in range(tries):
        for place, work in enumerate((theirs, ours)):
            started = time.perf_counter()
            work()
            best[place] = min(best[place], time.perf_counter() - started)
    return best[0], best[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--tries", type=int, default=7)
    options = parser.parse_args()
    scan, mask = phantom(options.slices)
    labels = LabelSet.from_names({value: f"organ {value}" for value in range(1, ORGANS + 1)})
    prediction = Prediction(mask, Geometry(mask.shape, AFFINE), labels)
    with tempfile.TemporaryDirectory() as folder:
        scan_path, theirs, ours = (Path(folder) / f"{n}.nii.gz" for n in ("scan", "nib", "medseg"))
        nib.save(nib.Nifti1Image(scan, AFFINE), scan_path)
        assert np.array_equal(read_scan(scan_path).voxels()[0], nib.load(scan_path).dataobj)
        slow, fast = race(
            lambda: np.asarray(nib.load(scan_path).dataobj),
            lambda: read_scan(scan_path).voxels(),
            options.tries,
        )
        print(f"read {scan.shape} int16 .nii.gz: nibabel {slow:.2f} s, medseg {fast:.2f} s, "
              f"ratio {slow / fast:.2f}")  # fmt: skip
        image = nib.Nifti1Image(prediction.labels, AFFINE)
        slow, fast = race(
            lambda: nib.save(image, theirs),
            lambda: write_mask(ours, prediction),
            options.tries,
        )
        assert np.array_equal(nib.load(ours).dataobj, mask)
        larger = ours.stat().st_size / theirs.stat().st_size
        print(f"write {mask.shape} uint8 mask: nibabel {slow:.2f} s, medseg {fast:.2f} s, "
              f"ratio {slow / fast:.2f}, size {larger:.3f} of nibabel's")  # fmt: skip


if __name__ == "__main__":
    main()
