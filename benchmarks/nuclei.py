"""How well touching nuclei are told apart in a true foreground: panoptic quality per picture.

``python benchmarks/nuclei.py FOLDER`` takes pictures of instance numbers (one value for each
nucleus, 0 for background), forgets the numbers, finds the nuclei again by components and by the
watershed of ``medseg instances``, and prints the mean panoptic quality of both. Beside them stands
scikit-image: a watershed of the same distances from the maxima that are at least 2 pixels deep.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSet
from medseg.evaluation.lesions import lesion_scores
from medseg.io.image2d import PICTURE_AFFINE_RAS
from medseg.postprocess.instances import InstanceOptions, find_instances

NUCLEUS = LabelSet.from_names({1: "nucleus"})
Array = NDArray[np.int32]


def ours(split: str, foreground: NDArray[np.uint8]) -> Array:
    """Numbers of one picture."""
    geometry = Geometry(foreground.shape, PICTURE_AFFINE_RAS)
    options = InstanceOptions(split)  # type: ignore[arg-type]
    found = find_instances(foreground, geometry, NUCLEUS, options)
    return np.asarray(found.numbers, dtype=np.int32)


def peer(foreground: NDArray[np.uint8]) -> Array:
    """Numbers of one picture."""
    inside = foreground[..., 0] > 0
    away = ndimage.distance_transform_edt(inside)
    peaks, _ = ndimage.label(h_maxima(away, 2.0), np.ones((3, 3)))
    # A nucleus that is no such maximum keeps a number of its own.
    parts, count = ndimage.label(inside, np.ones((3, 3)))
    low = np.setdiff1d(np.arange(1, count + 1), parts[peaks > 0])
    seeds = np.where(np.isin(parts, low), parts + peaks.max(), peaks)
    return np.asarray(watershed(-away, seeds, mask=inside)[..., None], dtype=np.int32)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of PNG masks")
    folder = parser.parse_args().folder
    files = sorted(folder.glob("*.png"))
    if not files:
        parser.error(f"{folder}: no PNG pictures of instance numbers")
    truths = [np.asarray(Image.open(file)).astype(np.int32).T[..., None] for file in files]
    nuclei = sum(len(np.unique(truth)) - 1 for truth in truths)
    print(f"{len(files)} pictures, {nuclei} nuclei")
    ways = {
        "components": lambda mask: ours("components", mask),
        "watershed": lambda mask: ours("watershed", mask),
        "scikit-image": peer,
    }
    for name, way in ways.items():
        masks = [(truth > 0).astype(np.uint8) for truth in truths]
        started = time.perf_counter()
        found = [way(mask) for mask in masks]
        seconds = time.perf_counter() - started
        scores = [lesion_scores(one, truth) for one, truth in zip(found, truths, strict=True)]
        quality = np.array([score.panoptic_quality for score in scores])
        matched = np.mean([score.recognition_quality for score in scores])
        count = sum(int(one.max()) for one in found)
        print(
            f"{name}: mean panoptic quality {quality.mean():.3f} (least {quality.min():.3f}), "
            f"recognition {matched:.3f}, {count} bodies, {seconds:.2f} s"
        )


if __name__ == "__main__":
    main()
