"""Dice, HD95 and NSD of 24 labels: medseg against MONAI's metrics and surface-distance, in one run.

``python benchmarks/metrics.py`` makes a mask of 512 x 512 x 200 voxels and a slightly wrong
one, scores every label with each tool, and prints the ratios and the largest differences.
medseg measures both definitions of a surface, and all its other figures, in the same time.
The peers get what is fastest for them: a pair of boolean masks per label, and for MONAI one
label at a time, since one-hot masks of all labels at once need 10 GB. ``--slices 50`` is a
quick look. Needs ``pip install surface-distance``. The last line is the distance transform alone.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray
from scipy import ndimage
from surface_distance import metrics as elements

from medseg.core.labels import LabelSet
from medseg.evaluation.evaluate import ScoreOptions, score_case
from medseg.evaluation.nearest import distance_transform, nearest_distances
from medseg.evaluation.surface import border

LABELS = 24
SPACING_MM = (0.8, 0.8, 2.5)
TOLERANCE_MM = 1.0
Mask = NDArray[np.uint8]
Figures = dict[int, tuple[float, float, float]]


def phantom(slices: int, seed: int = 0) -> tuple[Mask, Mask]:
    """Bumpy organs of many sizes, and the same a little moved, grown and rougher."""
    rng = np.random.Generator(np.random.PCG64(seed))
    shape = (512, 512, slices)
    prediction, reference = np.zeros((2, *shape), dtype=np.uint8)
    for value in range(1, LABELS + 1):
        largest = (110, 80, 60) if value == 1 else rng.uniform((8, 8, 5), (55, 50, 40))
        radius = np.minimum(largest, np.array(shape) / 2.5)
        centre = rng.uniform(radius + 4, np.array(shape) - radius - 4)
        moved, grown = centre + rng.normal(0, 1.2, 3), radius * rng.uniform(0.96, 1.05, 3)
        for mask, middle, size in ((reference, centre, radius), (prediction, moved, grown)):
            box = tuple(
                slice(max(0, int(c - r) - 5), min(n, int(c + r) + 6))
                for c, r, n in zip(middle, size, shape, strict=True)
            )
            grid = np.ogrid[box]
            away = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, middle, size, strict=True))
            bumps = ndimage.gaussian_filter(rng.standard_normal(away.shape, np.float32), 3)
            mask[box][away + 0.9 * bumps < 1.0] = value
    return prediction, reference


def ours(prediction: Mask, reference: Mask) -> tuple[Figures, Figures]:
    """By voxel border and by surface element."""
    labels = LabelSet.from_names({value: str(value) for value in range(1, LABELS + 1)})
    scores = score_case(
        prediction, reference, spacing_mm=SPACING_MM, labels=labels, tolerance_mm=TOLERANCE_MM,
        options=ScoreOptions(workers=os.cpu_count() or 1),
    ).labels  # fmt: skip
    return (
        {value: (row.dice, row.hd95_mm, row.nsd_voxel_border) for value, row in scores.items()},
        {value: (row.dice, row.hd95_element_mm, row.nsd) for value, row in scores.items()},
    )


def monai(prediction: Mask, reference: Mask) -> Figures:
    """One label at a time."""
    figures = {}
    for value in range(1, LABELS + 1):
        hot = [torch.from_numpy(mask == value)[None, None] for mask in (prediction, reference)]
        dice = compute_dice(hot[0].float(), hot[1].float(), include_background=True)
        distance = compute_hausdorff_distance(
            *hot, include_background=True, percentile=95, spacing=list(SPACING_MM)
        )
        surface = compute_surface_dice(
            *hot, [TOLERANCE_MM], include_background=True, spacing=list(SPACING_MM)
        )
        figures[value] = (float(dice), float(distance), float(surface))
    return figures


def surface_distance(prediction: Mask, reference: Mask) -> Figures:
    """One label at a time."""
    figures = {}
    for value in range(1, LABELS + 1):
        pair = reference == value, prediction == value
        found = elements.compute_surface_distances(*pair, SPACING_MM)
        figures[value] = (
            float(elements.compute_dice_coefficient(*pair)),
            float(elements.compute_robust_hausdorff(found, 95)),
            float(elements.compute_surface_dice_at_tolerance(found, TOLERANCE_MM)),
        )
    return figures


def timed(work: Callable[[], object], tries: int) -> tuple[float, object]:
    """Seconds of the quickest try, and what it gave."""
    best, result = float("inf"), None
    for _ in range(tries):
        started = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - started)
    return best, result


def largest_difference(first: Figures, second: Figures) -> float:
    """Of any figure of any label."""
    return max(
        abs(a - b) for value in first for a, b in zip(first[value], second[value], strict=True)
    )


def transforms(reference: Mask, tries: int) -> None:
    """Distances to one border, in the box of the largest label."""
    organ = np.asarray(reference[ndimage.find_objects(reference, max_label=1)[0]] == 1)
    edge = border(np.pad(organ, 8))
    other = np.roll(edge, 2, axis=0)
    theirs, expected = timed(
        lambda: ndimage.distance_transform_edt(~edge, sampling=SPACING_MM), tries
    )
    whole, found = timed(
        lambda: distance_transform(edge, SPACING_MM, workers=os.cpu_count() or 1), tries
    )
    points, near = timed(lambda: nearest_distances(other, edge, spacing_mm=SPACING_MM), tries)
    wrong = np.abs(np.asarray(expected) - np.asarray(found)).max()
    wrong_near = np.abs(np.asarray(expected)[other] - np.asarray(near)).max()
    print(
        f"distance transform of {edge.size / 1e6:.1f} million voxels: SciPy {theirs:.2f} s, "
        f"medseg {whole:.3f} s, {theirs / whole:.1f}x, differs by {wrong:.1e} mm; at the surface "
        f"alone {points:.4f} s, {theirs / points:.0f}x, differs by {wrong_near:.1e} mm"
    )


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--tries", type=int, default=1, help="of the peers; medseg gets 3 more")
    parser.add_argument("--transform-only", action="store_true", help="the last line alone")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    prediction, reference = phantom(given.slices)
    if given.transform_only:
        transforms(reference, given.tries + 2)
        return
    # The table of surface elements is made once a process.
    ours(prediction[:40, :40, :20], reference[:40, :40, :20])
    seconds, both = timed(lambda: ours(prediction, reference), given.tries + 3)
    print(f"medseg, both definitions and all figures: {seconds:.2f} s")
    for name, work, mine in (
        ("MONAI", monai, both[0]),
        ("surface-distance", surface_distance, both[1]),
    ):
        theirs, figures = timed(lambda work=work: work(prediction, reference), given.tries)
        print(
            f"{name}: {theirs:.1f} s, {theirs / seconds:.1f}x; "
            f"largest difference {largest_difference(mine, figures):.1e}"
        )
    transforms(reference, given.tries + 2)


if __name__ == "__main__":
    main()
